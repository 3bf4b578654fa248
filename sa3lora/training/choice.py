"""Which step of a run becomes its adapter, and since when it overfits. Pure functions of losses.

Every validation measures the same tuples, so two steps differ by what training did and not by
which noise was drawn; what is left to chance is which tracks are held out.

The choice: the first validated step is kept, and a later one takes its place only if its held-out
loss is lower by at least one standard error of the difference, paired by track. A lucky validation
does not win, slow progress does (it is compared with the kept step, not with the one before), and
of equals the step with less training stays. Only the kept step's adapter has to be stored.

Overfitting: the gap is the change of held-out loss less the change of training loss. A run overfits
from the first of two validations in a row at which the held-out loss is not below that of the kept
step, and both the gap itself and its growth since then lie above 0 with their whole 95 % interval.
Each alone is not enough: some training tracks are just easier than the held-out ones, the kept step
is by its choice a lucky one, and slow progress is no overfitting. In simulated runs of twenty
validations without overfitting the rule speaks up in at most 5 of 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sa3lora.probe import Gap, gap_between

_IN_A_ROW = 2


@dataclass(frozen=True)
class Point:
    """What one validation measured: adapter's loss less the base's, one value a track.

    Attributes:
        step: Number of finished steps.
        held_out: Of held-out tracks, in the order of their names; empty where there are none.
        training: Of training tracks.
        sha256: Of the adapter that was stored of this step, None if none was.
        lost: Whether a stored adapter turned out to be gone or damaged.
        extra: Whether it was made only because the run ended there.
    """

    step: int
    held_out: tuple[float, ...]
    training: tuple[float, ...]
    sha256: str | None = None
    lost: bool = False
    extra: bool = False

    @property
    def difference(self) -> float:
        """Mean over held-out tracks, or over training tracks where nothing is held out."""
        values = self.held_out or self.training
        return sum(values) / len(values)


@dataclass(frozen=True)
class Verdict:
    """What a run's validations say so far.

    Attributes:
        chosen: The step to keep, None before the first validation.
        gap: Of the newest validation, None where nothing is held out.
        growth: Of the gap since the kept step; None while the newest step is the kept one.
        overfits_since: First step of the overfitting, None if there is none since the kept step.
        waited: Validations since the kept step.
    """

    chosen: Point | None
    gap: Gap | None
    growth: Gap | None
    overfits_since: int | None
    waited: int


def judge(points: Sequence[Point]) -> Verdict:
    """Go through a run's validations in order."""
    chosen: Point | None = None
    gap = growth = None
    overfits_since: int | None = None
    waited = 0
    grown: list[int] = []
    for point in points:
        gap = growth = None
        if not point.lost and (chosen is None or is_better(point, chosen)):
            chosen, overfits_since = point, None
            waited, grown = 0, []
        else:
            waited += 1
        if not point.held_out:
            continue
        gap = gap_between(torch.tensor(point.held_out), torch.tensor(point.training))
        if chosen is None or point is chosen:
            continue
        growth = growth_between(chosen, point)
        no_gain = point.difference >= chosen.difference
        grown = [*grown, point.step] if no_gain and gap.is_real and growth.is_real else []
        if len(grown) >= _IN_A_ROW and overfits_since is None:
            overfits_since = grown[0]
    return Verdict(chosen, gap, growth, overfits_since, waited)


def is_better(new: Point, kept: Point) -> bool:
    """Whether a step's held-out loss is lower by a standard error, paired by track.

    One track has no standard error; its plain loss then decides.
    """
    drop = _tensor(kept.held_out or kept.training) - _tensor(new.held_out or new.training)
    error = float(drop.std()) / len(drop) ** 0.5 if len(drop) > 1 else 0.0
    gain = float(drop.mean())
    return gain > 0 and gain >= error


def growth_between(before: Point, after: Point) -> Gap:
    """Give the growth of the gap between two steps; each track is compared with itself."""
    return gap_between(
        _tensor(after.held_out) - _tensor(before.held_out),
        _tensor(after.training) - _tensor(before.training),
    )


def _tensor(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
