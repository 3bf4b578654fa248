"""A run that is killed and resumed, for the promise that nothing of it shows in the adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sa3lora.adapters.files import flat_tensors, read_adapter
from sa3lora.adapters.find import find_adapter
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.events import TrainEvent
from sa3lora.training.result import TrainResult
from sa3lora.training.trainer import train


class Killed(BaseException):
    """Stands for a process that is gone: nothing of ours catches it."""


def train_killed(recipe: Recipe, *, run: RunFolder, source: ModelSource, step: int) -> TrainResult:
    """Train until after a step, die there, and go on from the newest checkpoint to the end."""

    def kill(event: TrainEvent) -> None:
        if event.kind == "step" and event.step == step:
            raise Killed

    with pytest.raises(Killed):
        train(recipe, run=run, source=source, device="cpu", progress=kill)
    return train(recipe, run=run, source=source, device="cpu", resume=True)


def train_whole_and_killed(
    recipe: Recipe, *, root: Path, source: ModelSource, step: int
) -> tuple[RunFolder, TrainResult]:
    """Train once in one piece and once killed after a step; both end in the same adapter.

    Returns:
        The run in one piece.
    """
    whole, killed = (RunFolder.create(name, root=root) for name in ("whole", "killed"))
    result = train(recipe, run=whole, source=source, device="cpu")
    train_killed(recipe, run=killed, source=source, step=step)
    one, two = (read_adapter(find_adapter(run.path)) for run in (whole, killed))
    expected, found = flat_tensors(one), flat_tensors(two)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert two.content_hash == one.content_hash
    return whole, result
