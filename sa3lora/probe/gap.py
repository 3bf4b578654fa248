"""How much further an adapter got on the tracks it trains on than on tracks it never saw."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import t as student
from torch import Tensor

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Gap:
    """Held-out mean less training mean, with its 95 % interval by track.

    Attributes:
        value: Above 0, the training tracks gained more.
        low: Lower end of the interval, None where either side has fewer than two tracks.
        high: Upper end.
    """

    value: float
    low: float | None
    high: float | None

    @property
    def is_real(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low is not None and self.low > 0

    def __str__(self) -> str:
        """Give the value with its interval."""
        if self.low is None or self.high is None:
            return f"{self.value:+.4f} (too few tracks for an interval)"
        return f"{self.value:+.4f} (95 % interval {self.low:+.4f} to {self.high:+.4f})"


def gap_between(held_out: Tensor, training: Tensor) -> Gap:
    """Compare changes of loss on held-out tracks with those on training tracks.

    The two sides are different tracks, so nothing pairs them. A run often holds out three tracks:
    a bootstrap of three covers far less than it says, so this is Welch's interval (1947), which
    knows how little three tracks tell.

    Args:
        held_out: One change of loss (after less before) a held-out track, (n,).
        training: The same a training track, (m,).

    Raises:
        ValueError: If a side is empty.
    """
    if not len(held_out) or not len(training):
        raise ValueError(
            f"both sides need a track, got {len(held_out)} held-out and {len(training)} training"
        )
    value = float(held_out.double().mean() - training.double().mean())
    if len(held_out) < 2 or len(training) < 2:
        return Gap(value, None, None)
    sides = [float(side.double().var()) / len(side) for side in (held_out, training)]
    variance = sum(sides)
    if variance == 0:
        return Gap(value, value, value)
    freedom = variance**2 / (
        sides[0] ** 2 / (len(held_out) - 1) + sides[1] ** 2 / (len(training) - 1)
    )
    half = float(student.ppf(0.5 + _CONFIDENCE / 2, freedom)) * math.sqrt(variance)
    return Gap(value, value - half, value + half)
