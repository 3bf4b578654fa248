"""Search the strengths of a stack at which the loss on a probe is lowest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

Strengths = tuple[float, ...]
GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


@dataclass(frozen=True)
class StrengthSearch:
    """What was tried, and the best of it.

    Attributes:
        best: Strengths of the lowest mean loss; of equals the ones tried first.
        losses: Loss of each tuple there.
        tried: Mean loss of everything that was measured.
    """

    best: Strengths
    losses: Tensor
    tried: dict[Strengths, float]


def search_strengths(
    measure: Callable[[Strengths], Tensor],
    start: Sequence[float],
    *,
    grid: Sequence[float] = GRID,
    max_rounds: int = 3,
) -> StrengthSearch:
    """Improve one strength after the other over a grid, until none improves.

    Args:
        measure: Gives the loss of every tuple at some strengths.
        start: Strengths to begin with; they are measured too.
        grid: Strengths to try for each adapter.
        max_rounds: Rounds over all adapters, at most.
    """
    known: dict[Strengths, Tensor] = {}

    def mean_at(strengths: Strengths) -> float:
        if strengths not in known:
            known[strengths] = measure(strengths)
        return float(known[strengths].double().mean())

    best = tuple(float(value) for value in start)
    lowest = mean_at(best)
    for _ in range(max_rounds):
        before = best
        for place in range(len(best)):
            for value in grid:
                other = (*best[:place], float(value), *best[place + 1 :])
                if (loss := mean_at(other)) < lowest:
                    best, lowest = other, loss
        if best == before:
            break
    return StrengthSearch(best, known[best], {key: mean_at(key) for key in known})
