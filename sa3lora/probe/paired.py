"""Difference of two models' losses on the same draws, with its interval by track."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_REPLICATES = 2000
_TAIL = 0.025  # 95 % interval


@dataclass(frozen=True)
class PairedDifference:
    """Mean losses of two models and their difference.

    Attributes:
        base: Mean loss of the base model, every track weighing the same.
        adapter: The same for the adapted model.
        difference: `adapter - base`; below 0 the adapter is better.
        low: Lower end of the difference's 95 % interval, None with fewer than two tracks.
        high: Upper end.
        num_tracks: Number of tracks, the unit of the interval.
        num_tuples: Number of losses behind each mean.
    """

    base: float
    adapter: float
    difference: float
    low: float | None
    high: float | None
    num_tracks: int
    num_tuples: int

    def __str__(self) -> str:
        """Give both losses, the difference and its interval in one line."""
        if self.low is None or self.high is None:
            interval = "one track, so no interval"
        else:
            interval = f"95 % interval {self.low:+.4f} to {self.high:+.4f}"
        tracks = f"{self.num_tracks} track{'' if self.num_tracks == 1 else 's'}"
        return (
            f"base {self.base:.4f}, adapter {self.adapter:.4f}, difference "
            f"{self.difference:+.4f} ({interval}; {self.num_tuples} tuples of {tracks})"
        )


def paired_difference(base: Tensor, adapter: Tensor, tracks: Sequence[str]) -> PairedDifference:
    """Compare two models on the same tuples, resampling whole tracks.

    Tuples of one track are not independent, so they are averaged first and the bootstrap draws
    tracks (seeded: the same losses give the same interval).

    Args:
        base: Loss of each tuple under the base model, (n,).
        adapter: Loss of each tuple under the adapted model, (n,).
        tracks: The track of each tuple, n names.

    Raises:
        ValueError: If the three do not have the same, positive length.
    """
    if not len(base) == len(adapter) == len(tracks) > 0:
        raise ValueError(
            f"base, adapter and tracks must have one length above 0, got {len(base)}, "
            f"{len(adapter)} and {len(tracks)}"
        )
    base_by_track = mean_by_track(base, tracks)
    adapter_by_track = mean_by_track(adapter, tracks)
    differences = adapter_by_track - base_by_track
    low, high = _interval(differences)
    return PairedDifference(
        base=base_by_track.mean().item(),
        adapter=adapter_by_track.mean().item(),
        difference=differences.mean().item(),
        low=low,
        high=high,
        num_tracks=len(differences),
        num_tuples=len(tracks),
    )


def mean_by_track(losses: Tensor, tracks: Sequence[str]) -> Tensor:
    """Average the losses of each track, in the order of their names, float64."""
    names = {name: n for n, name in enumerate(sorted(set(tracks)))}
    index = torch.tensor([names[track] for track in tracks])
    sums = torch.zeros(len(names), dtype=torch.float64)
    sums.index_add_(0, index, losses.detach().cpu().double())
    return sums / torch.bincount(index, minlength=len(names))


def _interval(differences: Tensor) -> tuple[float | None, float | None]:
    count = len(differences)
    if count < 2:
        return None, None
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(count, (_REPLICATES, count), generator=generator)
    deviations = differences[drawn].mean(dim=1) - differences.mean()
    # The bootstrap spread lacks the factor of the sample variance, which few tracks feel.
    deviations *= math.sqrt(count / (count - 1))
    low, high = torch.quantile(
        deviations, torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64)
    ).tolist()
    mean = differences.mean().item()
    return mean + low, mean + high
