"""Deciding which clips a dataset shall have, before anything is encoded."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets_prep.captions import Caption, CaptionError, read_caption
from datasets_prep.scan import SourceFacts, SourceFile, Unusable
from datasets_prep.segment import Segment, SegmentRule
from datasets_prep.split import assign_splits
from sa3lora.errors import DatasetError
from sa3lora.latents.schema import ClipRow


@dataclass(frozen=True)
class PlannedClip:
    """A clip that the dataset shall have: its row, and where its audio lies."""

    row: ClipRow
    path: Path
    segment: Segment


@dataclass(frozen=True)
class Plan:
    """All clips of a dataset, and everything that stays out of it."""

    clips: list[PlannedClip]
    num_files: int
    skipped: list[Unusable] = field(default_factory=list)
    silent: list[Unusable] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class PlanOptions:
    """What the user chose about captions, splits and broken files."""

    caption_template: str | None = None
    validation: float = 0.1
    test: float = 0.1
    skip_broken: bool = False


def make_plan(
    checked: Sequence[tuple[SourceFile, SourceFacts | Unusable]],
    *,
    root: Path,
    rule: SegmentRule,
    options: PlanOptions,
    foreign: Sequence[Unusable] = (),
) -> Plan:
    """Turn checked files into the rows of a dataset.

    Args:
        checked: Every audio file and what was found in it.
        root: The scanned folder.
        rule: How files are cut.
        options: The user's choices.
        foreign: Files of formats that are not read.

    Returns:
        The plan. It does not depend on the order of the files.

    Raises:
        DatasetError: Naming every file that cannot be used (unless those are skipped) and every
            file without a caption, all in one message.
    """
    checked = sorted(checked, key=lambda item: item[0].relative)
    broken = [facts for _, facts in checked if isinstance(facts, Unusable)] + list(foreign)
    broken.sort(key=lambda item: item.source)
    good = [(file, facts) for file, facts in checked if isinstance(facts, SourceFacts)]
    captions, captionless = _captions(good, root=root, template=options.caption_template)
    num_files = len(checked) + len(foreign)
    _refuse(broken if not options.skip_broken else [], captionless, num_files=num_files)
    if not good:
        raise DatasetError(f"none of {num_files} files can be used:\n{_listing(broken)}")
    splits = assign_splits(
        {file.relative: facts.audio_sha256 for file, facts in good},
        validation=options.validation,
        test=options.test,
    )
    clips: list[PlannedClip] = []
    silent: list[Unusable] = []
    seen: set[str] = set()
    for file, facts in good:
        for number, segment in enumerate(facts.segments):
            if facts.silent[number]:
                silent.append(_silent_part(file, segment, rule=rule))
                continue
            row = _row(file, facts, segment=segment, rule=rule, split=splits[file.relative],
                       caption=captions[file.relative], seen=seen)  # fmt: skip
            clips.append(PlannedClip(row, file.path, segment))
    return Plan(clips, num_files, broken, silent, _duplicates(good))


def _captions(
    good: Sequence[tuple[SourceFile, SourceFacts]], *, root: Path, template: str | None
) -> tuple[dict[str, Caption], list[Unusable]]:
    captions: dict[str, Caption] = {}
    missing: list[Unusable] = []
    for file, facts in good:
        try:
            captions[file.relative] = read_caption(
                file, root=root, embedded=facts.tags, template=template
            )
        except CaptionError as error:
            missing.append(Unusable(file.relative, str(error)))
    return captions, missing


def _row(
    file: SourceFile,
    facts: SourceFacts,
    *,
    segment: Segment,
    rule: SegmentRule,
    split: str,
    caption: Caption,
    seen: set[str],
) -> ClipRow:
    identity = _clip_id(facts.source_sha256, segment, sample_rate=rule.sample_rate)
    if identity in seen:
        # A byte-for-byte copy of another file: its clips need names of their own.
        identity = _clip_id(f"{facts.source_sha256} {file.relative}", segment,
                            sample_rate=rule.sample_rate)  # fmt: skip
    seen.add(identity)
    return ClipRow(
        clip_id=identity,
        num_frames=rule.num_frames(segment),
        caption=caption.text,
        caption_source=caption.source,
        tags=dict(sorted(caption.tags.items())),
        duration_s=segment.num_samples / rule.sample_rate,
        start_s=segment.start / rule.sample_rate,
        source=file.relative,
        source_sha256=facts.source_sha256,
        source_duration_s=facts.duration_s,
        split=split,
        licence=caption.licence,
        attribution=caption.attribution,
    )


def _clip_id(source: str, segment: Segment, *, sample_rate: int) -> str:
    # In microseconds: the same part has the same name for models of any rate.
    start, length = (round(n * 1e6 / sample_rate) for n in (segment.start, segment.num_samples))
    return hashlib.sha256(f"{source} {start} {length}".encode()).hexdigest()[:32]


def _silent_part(file: SourceFile, segment: Segment, *, rule: SegmentRule) -> Unusable:
    start = segment.start / rule.sample_rate
    stop = start + segment.num_samples / rule.sample_rate
    return Unusable(file.relative, f"silent from {start:.1f} to {stop:.1f} s (peak below -60 dBFS)")


def _duplicates(good: Sequence[tuple[SourceFile, SourceFacts]]) -> list[list[str]]:
    groups: Mapping[str, list[str]] = defaultdict(list)
    for file, facts in good:
        groups[facts.audio_sha256].append(file.relative)
    return [names for names in groups.values() if len(names) > 1]


def _refuse(broken: Sequence[Unusable], captionless: Sequence[Unusable], *, num_files: int) -> None:
    parts = []
    if broken:
        parts.append(
            f"{len(broken)} of {num_files} files cannot be used:\n{_listing(broken)}\n"
            "Fix or remove them, or pass --skip-broken."
        )
    if captionless:
        parts.append(
            f"{len(captionless)} of {num_files} files have no caption:\n{_listing(captionless)}\n"
            "Write it to a .txt or .json of the same name beside each, or pass "
            '--caption-template, for example "{words}".'
        )
    if parts:
        raise DatasetError("\n".join(parts))


def _listing(items: Sequence[Unusable]) -> str:
    return "\n".join(f"  {item.source}: {item.reason}" for item in items)
