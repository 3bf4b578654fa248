"""What the user chooses about a prep, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from datasets_prep.scan import Unusable
from datasets_prep.segment import SegmentRule
from sa3lora.errors import UsageError
from sa3lora.latents.schema import DatasetMeta
from sa3lora.models.source import ModelSource

_MIN_S = 2.0


@dataclass(frozen=True)
class PrepOptions:
    """How a folder becomes a dataset.

    Args:
        caption_template: For files without a sidecar, with placeholders; None refuses those.
        segment_s: Longest clip; None takes the model's longest.
        min_s: A shorter rest of a long file joins the segment before it; None takes 2 s, or a
            quarter of the segment if that is shorter.
        validation: Share of sources for validation.
        test: Share of sources for test.
        skip_broken: Leave out files that cannot be used instead of refusing.
    """

    caption_template: str | None = None
    segment_s: float | None = None
    min_s: float | None = None
    validation: float = 0.1
    test: float = 0.1
    skip_broken: bool = False


@dataclass(frozen=True)
class PrepReport:
    """What a prep did: clips encoded now and kept from before, and the finished dataset."""

    out: Path
    meta: DatasetMeta
    encoded: int
    kept: int
    num_files: int
    skipped: list[Unusable] = field(default_factory=list)
    silent: list[Unusable] = field(default_factory=list)


def segment_rule(source: ModelSource, options: PrepOptions) -> SegmentRule:
    """Combine the user's lengths with the model's.

    Args:
        source: The model.
        options: The user's choices.

    Returns:
        A checked rule.

    Raises:
        UsageError: If they cannot work together.
    """
    same = source.config.same
    longest = source.config.max_duration_s
    if longest <= 0:  # an autoencoder alone does not say
        if options.segment_s is None:
            raise UsageError(f"{source.name} is an autoencoder alone: give --segment-s.")
        longest = options.segment_s
    segment_s = longest if options.segment_s is None else options.segment_s
    min_s = min(_MIN_S, segment_s / 4) if options.min_s is None else options.min_s
    rule = SegmentRule(same.sample_rate, same.downsampling_ratio, segment_s, min_s, longest)
    rule.check()
    return rule
