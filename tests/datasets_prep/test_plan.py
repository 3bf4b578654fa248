from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from datasets_prep.plan import PlanOptions, make_plan
from datasets_prep.scan import SourceFacts, SourceFile, Unusable
from datasets_prep.segment import Segment, SegmentRule
from sa3lora.errors import DatasetError

RULE = SegmentRule(sample_rate=1000, ratio=10, segment_s=1.0, min_s=0.2, max_s=1.0)
TEMPLATE = PlanOptions(caption_template="{stem}")


def entry(name: str, *, sha: str = "", audio: str = "", count: int = 1, silent: int | None = None):
    facts = SourceFacts(
        source_sha256=sha or f"bytes of {name}",
        audio_sha256=audio or f"audio of {name}",
        duration_s=float(count),
        tags={},
        segments=[Segment(n * 1000, 1000 if n + 1 < count else 995) for n in range(count)],
        silent=[n == silent for n in range(count)],
    )
    return SourceFile(Path(f"/music/{name}"), name), facts


def plan_of(*entries, options=TEMPLATE, foreign=()):
    return make_plan(entries, root=Path("/music"), rule=RULE, options=options, foreign=foreign)


def test_a_clip_is_described_by_its_row():
    (_, second) = plan_of(entry("a.wav", count=2)).clips
    row = second.row
    assert (row.start_s, row.duration_s, row.num_frames) == (1.0, 0.995, 100)
    assert (row.source, row.source_duration_s, row.caption) == ("a.wav", 2.0, "a")
    assert second.path == Path("/music/a.wav")


def test_the_order_of_files_does_not_matter():
    entries = [entry(f"{n}.wav", count=3) for n in range(9)]
    assert plan_of(*entries) == plan_of(*reversed(entries))


def test_no_source_is_in_two_splits():
    plan = plan_of(*(entry(f"{n}.wav", count=4) for n in range(12)))
    splits = {(clip.row.source, clip.row.split) for clip in plan.clips}
    assert len(splits) == 12


def test_identity_follows_the_bytes_and_not_the_name():
    first = plan_of(entry("a.wav", sha="x", count=2)).clips
    second = plan_of(entry("b.wav", sha="x", count=2)).clips
    assert [c.row.clip_id for c in first] == [c.row.clip_id for c in second]
    assert first[0].row.clip_id != first[1].row.clip_id


def test_copies_are_kept_named_and_on_one_side():
    entries = [entry(f"{n}.wav") for n in range(10)]
    copies = [replace_file(e, f"copy {e[0].relative}") for e in entries]
    plan = plan_of(*entries, *copies)
    assert len({clip.row.clip_id for clip in plan.clips}) == 20
    split = {clip.row.source: clip.row.split for clip in plan.clips}
    assert all(split[f"{n}.wav"] == split[f"copy {n}.wav"] for n in range(10))
    assert ["0.wav", "copy 0.wav"] in plan.duplicates


def replace_file(item, name):
    file, facts = item
    return replace(file, relative=name, path=Path(f"/music/{name}")), facts


def test_a_silent_part_is_left_out_and_named():
    plan = plan_of(entry("a.wav", count=3, silent=1))
    assert [clip.row.start_s for clip in plan.clips] == [0.0, 2.0]
    assert plan.silent == [Unusable("a.wav", "silent from 1.0 to 2.0 s (peak below -60 dBFS)")]


def test_every_problem_is_named_at_once():
    broken = (SourceFile(Path("/music/z.wav"), "z.wav"), Unusable("z.wav", "0 bytes"))
    foreign = [Unusable("x.wma", ".wma is not read")]
    with pytest.raises(DatasetError) as info:
        plan_of(broken, entry("a.wav"), entry("b.wav"), options=PlanOptions(), foreign=foreign)
    message = str(info.value)
    assert "2 of 4 files cannot be used:\n  x.wma: .wma is not read\n  z.wav: 0 bytes" in message
    assert "or pass --skip-broken" in message
    assert "2 of 4 files have no caption:\n  a.wav: no caption\n  b.wav: no caption" in message
    assert "--caption-template" in message


def test_broken_files_can_be_skipped_but_not_forgotten():
    broken = (SourceFile(Path("/music/z.wav"), "z.wav"), Unusable("z.wav", "0 bytes"))
    plan = plan_of(broken, entry("a.wav"), options=replace(TEMPLATE, skip_broken=True))
    assert plan.skipped == [Unusable("z.wav", "0 bytes")]
    assert plan.num_files == 2


def test_nothing_usable_is_an_error_even_when_skipping():
    broken = (SourceFile(Path("/music/z.wav"), "z.wav"), Unusable("z.wav", "0 bytes"))
    with pytest.raises(DatasetError, match=r"none of 1 files can be used:\n  z.wav: 0 bytes"):
        plan_of(broken, options=replace(TEMPLATE, skip_broken=True))
