"""One optimizer step of a run: its micro-batches, their losses, the update, the scalars."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from sa3lora.errors import DivergenceError
from sa3lora.latents.batching import Batch
from sa3lora.training.flow_objective import StepObjective
from sa3lora.training.loop import ResumableLoop, Update
from sa3lora.training.meter import Meter
from sa3lora.training.session import Setup
from sa3lora.training.step import StepLoss, broken_clips


class Stepper:
    """Takes steps; everything that changes by them belongs to `loop`, the data and `objective`."""

    def __init__(self, setup: Setup, *, objective: StepObjective, loop: ResumableLoop) -> None:
        """Take the parts of a run that is ready for its next step."""
        self._setup = setup
        self._objective = objective
        self._loop = loop
        self._meter = Meter(setup.device, processes=setup.processes)

    def take(self, *, attempt: int = 0) -> dict[str, float]:
        """Take one optimizer step and return its scalars by tag.

        Every clip of the step weighs the same, in whichever batch and process it is.

        Args:
            attempt: How many times this step failed before; that many times its clips are passed
                over.

        Raises:
            DivergenceError: If the loss or the gradients are not finite, in every process; nothing
                is changed then but the position in the data.
        """
        began = time.perf_counter()
        accumulate = self._setup.recipe.train.grad_accum
        for _ in range(attempt * accumulate):
            self._setup.data.next_batch()
        batches = [self._setup.data.next_batch() for _ in range(accumulate)]
        num_clips = sum(len(batch.clip_ids) for batch in batches)
        step = self._loop.step + 1
        losses: list[StepLoss] = []
        for batch, loss in zip(
            batches, self._objective.losses(batches, step=step, attempt=attempt), strict=True
        ):
            torch.autograd.backward(loss.total * (len(batch.clip_ids) / num_clips))
            losses.append(loss)
        finite = all(bool(torch.isfinite(loss.total)) for loss in losses)
        try:
            update: Update = self._loop.update(weight=num_clips if finite else math.nan)
        except DivergenceError as error:
            raise self._with_clips(error, losses, batches) from error
        return self._meter.measure(losses, update, seconds=time.perf_counter() - began)

    def first_estimate(self, remaining: int) -> str | None:
        """Say how long the rest will take, once, when the first few steps are behind."""
        return self._meter.first_estimate(remaining)

    def _with_clips(
        self, error: DivergenceError, losses: Sequence[StepLoss], batches: Sequence[Batch]
    ) -> DivergenceError:
        """Name the clips of all processes that the failure came from."""
        pairs = list(zip(losses, batches, strict=True))
        broken = [name for loss, batch in pairs for name in broken_clips(loss, batch.clip_ids)]
        given = [name for batch in batches for name in batch.clip_ids]
        everyone = self._setup.processes.gather((broken, given))
        step = self._loop.step + 1
        if clips := [name for names, _ in everyone for name in names]:
            return DivergenceError(f"step {step}: the loss is no number", step=step, clips=clips)
        clips = [name for _, names in everyone for name in names]
        reason = f"step {step}: the gradients are no numbers"
        return DivergenceError(reason, step=step, clips=clips)
