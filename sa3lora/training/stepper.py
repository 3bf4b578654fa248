"""One optimizer step of a run: its micro-batches, their losses, the update, the scalars."""

from __future__ import annotations

import time

import torch

from sa3lora.training.flow_objective import StepObjective
from sa3lora.training.loop import ResumableLoop, Update
from sa3lora.training.meter import Meter
from sa3lora.training.session import Setup
from sa3lora.training.step import StepLoss, require_finite


class Stepper:
    """Takes steps; everything that changes by them belongs to `loop`, the data and `objective`."""

    def __init__(self, setup: Setup, *, objective: StepObjective, loop: ResumableLoop) -> None:
        """Take the parts of a run that is ready for its next step."""
        self._setup = setup
        self._objective = objective
        self._loop = loop
        self._meter = Meter(setup.device)

    def take(self) -> dict[str, float]:
        """Take one optimizer step and return its scalars by tag.

        Raises:
            RunError: If the loss or the gradients are not finite.
        """
        began = time.perf_counter()
        accumulate = self._setup.recipe.train.grad_accum
        batches = [self._setup.data.next_batch() for _ in range(accumulate)]
        losses: list[StepLoss] = []
        for batch, loss in zip(batches, self._objective.losses(batches), strict=True):
            require_finite(loss, step=self._loop.step + 1, clip_ids=batch.clip_ids)
            torch.autograd.backward(loss.total / accumulate)
            losses.append(loss)
        update: Update = self._loop.update()
        return self._meter.measure(losses, update, seconds=time.perf_counter() - began)

    def first_estimate(self, remaining: int) -> str | None:
        """Say how long the rest will take, once, when the first few steps are behind."""
        return self._meter.first_estimate(remaining)
