"""Intervals for scores: resample whole tracks, because windows of one track are not independent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CONFIDENCE = 0.95
# Two-sided 95 % quantile of the standard normal distribution.
_Z = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A score with its interval; `low` and `high` are None where one track gives no interval."""

    value: float
    low: float | None
    high: float | None
    num_tracks: int

    @property
    def tells_apart(self) -> bool:
        """Say whether the interval leaves 0 out, so that the sign of the value can be believed."""
        if self.low is None or self.high is None:
            return False
        return self.low > 0 or self.high < 0


def resample_counts(num_tracks: int, *, replicates: int, generator: torch.Generator) -> Tensor:
    """Draw how often each track occurs in every bootstrap replicate.

    Args:
        num_tracks: Number of tracks to draw from, at least 1.
        replicates: Number of replicates R.
        generator: CPU generator; the same seed gives the same draws.

    Returns:
        Counts (R, num_tracks), int64; each row sums to `num_tracks`.
    """
    drawn = torch.randint(num_tracks, (replicates, num_tracks), generator=generator)
    counts = torch.zeros(replicates, num_tracks, dtype=torch.int64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn))


def student_widening(num_tracks: int) -> float:
    """Factor by which a percentile interval of few tracks is too narrow (Hesterberg, 2015, 3.2).

    The bootstrap spread lacks n / (n - 1), and the normal quantile stands where Student's should;
    the latter by the expansion of Abramowitz and Stegun 26.7.5 in 1 / (n - 1).
    """
    degrees = num_tracks - 1
    first = (_Z**3 + _Z) / 4
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96
    third = (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 384
    student = _Z + first / degrees + second / degrees**2 + third / degrees**3
    return student / _Z * math.sqrt(num_tracks / degrees)


def interval_from_replicates(value: float, replicates: Tensor, *, num_tracks: int) -> Estimate:
    """Put a 95 % interval around a score from its bootstrap replicates.

    The replicates are moved so that their mean is the score: a distance of resampled sets is
    biased upwards (fewer distinct tracks), and a plain percentile interval may then lie wholly
    above the score itself. What the interval covers is the score at this sample size.

    Args:
        value: The score of the whole set.
        replicates: Scores of the resampled sets, (R,).
        num_tracks: Number of tracks that were resampled.
    """
    if num_tracks < 2:
        return Estimate(value, None, None, num_tracks)
    deviations = (replicates - replicates.mean()).double() * student_widening(num_tracks)
    tail = (1 - CONFIDENCE) / 2
    bounds = torch.quantile(deviations, torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return Estimate(value, value + bounds[0].item(), value + bounds[1].item(), num_tracks)


def mean_estimate(per_track: Tensor, *, replicates: int = 1000, seed: int = 0) -> Estimate:
    """Average one number per track, with the interval of the average.

    Args:
        per_track: One value per track, (n,). Differences of pairs give a paired interval.
        replicates: Number of bootstrap replicates.
        seed: Seed of the resampling.
    """
    values = per_track.double()
    if len(values) == 0:
        raise ValueError("per_track must hold at least 1 track, got none")
    generator = torch.Generator().manual_seed(seed)
    counts = resample_counts(len(values), replicates=replicates, generator=generator)
    means = counts.double() @ values / len(values)
    return interval_from_replicates(values.mean().item(), means, num_tracks=len(values))
