from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from datasets_prep.scan import SourceFacts
from datasets_prep.segment import Segment
from datasets_prep.store import (
    abandon,
    begin,
    check_options,
    has_silence,
    present_clips,
    read_checks,
    read_options,
    reconcile,
    write_checks,
)
from sa3lora.errors import DatasetError
from sa3lora.latents.manifest import collect_rows
from sa3lora.latents.schema import ClipRow
from sa3lora.latents.shards import LatentColumn, list_shards, open_shard, read_rows, write_shard

ROW = ClipRow("a", 2, "c", "sidecar", {}, 0.5, 0.0, "a.wav", "0", 1.0, "train")
ROWS = [replace(ROW, clip_id=c, source=f"{c}.wav") for c in "abc"]
LATENTS = [np.full((2, 4), n, dtype=np.float16) for n in range(3)]


@pytest.fixture
def out(tmp_path):
    write_shard(tmp_path, rank=0, rows=ROWS, latents=LATENTS)
    return tmp_path


def settle(out, *rows):
    return reconcile(out, wanted={row.clip_id: row for row in rows}, channels=4)


def test_shards_that_hold_what_is_wanted_stay_as_they_are(out):
    (shard,) = list_shards(out)
    before = shard.stat().st_mtime_ns
    assert settle(out, *ROWS) == {"a", "b", "c"}
    assert [path.stat().st_mtime_ns for path in list_shards(out)] == [before]


def test_unwanted_clips_leave_and_others_keep_their_latents(out):
    assert settle(out, ROWS[0], ROWS[2]) == {"a", "c"}
    (shard,) = list_shards(out)
    table = open_shard(shard)
    assert read_rows(table) == [ROWS[0], ROWS[2]]
    assert (LatentColumn(table, channels=4).view(1) == 2).all()


def test_a_clip_of_another_length_is_not_kept(out):
    assert settle(out, replace(ROWS[0], num_frames=3), *ROWS[1:]) == {"b", "c"}


def test_a_clip_left_twice_by_a_crash_is_kept_once(out, caplog):
    write_shard(out, rank=0, rows=ROWS[1:], latents=LATENTS[1:])
    assert settle(out, *ROWS) == {"a", "b", "c"}
    assert collect_rows(out, channels=4)[0] == ROWS
    assert caplog.text == ""


def test_clips_that_are_there_are_listed(out):
    assert present_clips(out) == {"a", "b", "c"}
    assert present_clips(out / "none") == set()


def test_options_are_kept_and_differences_named(tmp_path):
    assert read_options(tmp_path) is None
    begin(tmp_path, options={"model": "tiny", "segment_s": 5.0, "min_s": 1.0})
    stored = read_options(tmp_path)
    check_options(tmp_path, stored=stored, wanted={**stored, "model": "sibling"})
    with pytest.raises(DatasetError, match=r"segment_s 5.0, this is 6.0, min_s 1.0, this is 2.0"):
        check_options(tmp_path, stored=stored, wanted={**stored, "segment_s": 6.0, "min_s": 2.0})


def test_checks_survive_and_a_damaged_file_is_only_a_warning(tmp_path, caplog):
    facts = SourceFacts("s", "a", 1.5, {"title": "é"}, [Segment(0, 9)], [False])
    begin(tmp_path, options={})
    write_checks(tmp_path, [facts])
    assert read_checks(tmp_path) == {"s": facts}
    (tmp_path / ".prep" / "checks.json").write_text('{"s": 1}')
    assert read_checks(tmp_path) == {}
    assert "all files are checked again" in caplog.text


def test_only_a_folder_without_clips_is_abandoned(out, tmp_path_factory):
    abandon(out)
    assert list_shards(out)
    empty = tmp_path_factory.mktemp("empty") / "set"
    begin(empty, options={})
    abandon(empty)
    assert not empty.exists()


def test_missing_silence_is_seen(tmp_path):
    assert not has_silence(tmp_path, channels=4)
