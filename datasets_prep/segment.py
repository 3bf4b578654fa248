"""Cutting long files into segments; short ones keep their natural length."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sa3lora.errors import UsageError


@dataclass(frozen=True)
class Segment:
    """A part of a file, in samples at the model's rate."""

    start: int
    num_samples: int


@dataclass(frozen=True)
class SegmentRule:
    """How files are cut for one model.

    Args:
        sample_rate: The model's.
        ratio: Samples of one latent frame.
        segment_s: Longest segment.
        min_s: A shorter rest is not left to stand alone.
        max_s: Longest clip the model takes, at least `segment_s`.
    """

    sample_rate: int
    ratio: int
    segment_s: float
    min_s: float
    max_s: float

    def check(self) -> None:
        """Refuse lengths that cannot work.

        Raises:
            UsageError: If the segment is shorter than a latent or than `min_s`, or longer than
                the model takes.
        """
        latent_s = self.ratio / self.sample_rate
        if not self.segment_s >= latent_s:  # NaN fails too
            raise UsageError(
                f"--segment-s must be at least one latent ({latent_s:.3f} s), "
                f"got {self.segment_s:g}"
            )
        if self.segment_s > self.max_s:
            raise UsageError(
                f"--segment-s must be at most the model's {self.max_s:g} s, got {self.segment_s:g}"
            )
        if not 0 <= self.min_s <= self.segment_s:
            raise UsageError(
                f"--min-s must be between 0 and the segment's {self.segment_s:g} s, "
                f"got {self.min_s:g}"
            )

    def model_samples(self, num_samples: int, sample_rate: int) -> int:
        """Convert a length to the model's rate.

        Args:
            num_samples: Samples of the file.
            sample_rate: Its rate.

        Returns:
            Samples at the model's rate, rounded down: resampling gives at least as many.
        """
        return num_samples * self.sample_rate // sample_rate

    def num_frames(self, segment: Segment) -> int:
        """Count the latents of a segment.

        Args:
            segment: The segment.

        Returns:
            Frames; the last may be partly filled.
        """
        return -(-segment.num_samples // self.ratio)


def segment_source(num_samples: int, *, rule: SegmentRule) -> list[Segment]:
    """Cut a file.

    A file up to the segment length stays whole. A longer one is cut at multiples of the segment
    length, rounded down to whole latents. A rest below `min_s` joins the segment before it; where
    that would be too long for the model, the two share their length equally. Nothing is dropped.

    Args:
        num_samples: Length at the model's rate.
        rule: How to cut.

    Returns:
        Segments that cover the file without overlap; none if it is shorter than one latent.
    """
    if num_samples < rule.ratio:
        return []
    if num_samples <= round(rule.segment_s * rule.sample_rate):
        return [Segment(0, num_samples)]
    step = round(rule.segment_s * rule.sample_rate) // rule.ratio * rule.ratio
    starts = list(range(0, num_samples, step))
    rest = num_samples - starts[-1]
    # A rest below one latent could never stand alone, whatever min_s says.
    if rest < max(rule.min_s * rule.sample_rate, rule.ratio):
        joined = step + rest
        starts.pop()
        if joined > round(rule.max_s * rule.sample_rate):
            half = math.ceil(joined / 2 / rule.ratio) * rule.ratio
            if half < joined:
                starts.append(starts[-1] + half)
    ends = [*starts[1:], num_samples]
    return [Segment(start, end - start) for start, end in zip(starts, ends, strict=True)]


def source_range(segment: Segment, *, rule: SegmentRule, sample_rate: int) -> tuple[int, int]:
    """Find a segment in the file's own samples.

    Args:
        segment: The segment.
        rule: That made it.
        sample_rate: The file's rate.

    Returns:
        First sample, and the one behind the last.
    """
    start = segment.start * sample_rate // rule.sample_rate
    stop = math.ceil((segment.start + segment.num_samples) * sample_rate / rule.sample_rate)
    return start, stop
