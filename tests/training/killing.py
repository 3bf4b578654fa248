"""A run that is killed and resumed, for the promise that nothing of it shows in the adapter."""

from __future__ import annotations

import pytest

from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.events import TrainEvent
from sa3lora.training.trainer import train


class Killed(BaseException):
    """Stands for a process that is gone: nothing of ours catches it."""


def train_killed(recipe: Recipe, *, run: RunFolder, source: ModelSource, step: int) -> None:
    """Train until after a step, die there, and go on from the newest checkpoint to the end."""

    def kill(event: TrainEvent) -> None:
        if event.kind == "step" and event.step == step:
            raise Killed

    with pytest.raises(Killed):
        train(recipe, run=run, source=source, device="cpu", progress=kill)
    train(recipe, run=run, source=source, device="cpu", resume=True)
