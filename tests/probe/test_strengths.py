from __future__ import annotations

import torch
from torch import Tensor

from sa3lora.probe import search_strengths


def bowl(strengths: tuple[float, ...]) -> Tensor:
    """Two tuples whose mean loss is lowest at 0.5 and 1."""
    one, two = strengths
    return torch.tensor([(one - 0.5) ** 2, (two - 1.0) ** 2 + 0.1 * one * two])


def test_the_lowest_loss_on_the_grid_is_found_and_everything_tried_is_told() -> None:
    found = search_strengths(bowl, (1.0, 1.0))
    everything = {
        (a / 4, b / 4): float(bowl((a / 4, b / 4)).mean()) for a in range(6) for b in range(6)
    }
    assert found.best == min(everything, key=lambda key: everything[key])
    assert torch.equal(found.losses, bowl(found.best))
    assert found.tried[1.0, 1.0] == float(bowl((1.0, 1.0)).double().mean())
    assert min(found.tried, key=lambda key: found.tried[key]) == found.best


def test_nothing_is_measured_twice_and_a_start_that_is_best_stays() -> None:
    asked: list[tuple[float, ...]] = []

    def measure(strengths: tuple[float, ...]) -> Tensor:
        asked.append(strengths)
        return torch.tensor([0.0 if strengths == (0.6, 0.3) else 1.0])

    assert search_strengths(measure, (0.6, 0.3)).best == (0.6, 0.3)
    assert len(asked) == len(set(asked)) == 1 + 6 + 6
