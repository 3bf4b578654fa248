"""One optimizer step of a run: its micro-batches, their losses, the update, the scalars.

The host asks the device for a step and does not wait for it. What came of the step, whether it was
a number included, is read when the next one has been asked for, so a GPU always has work. A step
on what is no number may therefore be followed by one more; both are undone by going back.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from sa3lora.errors import DivergenceError
from sa3lora.latents.batching import BatchPlan
from sa3lora.probe import StepLoss
from sa3lora.training.accumulation import backward_mean
from sa3lora.training.ahead import Ahead
from sa3lora.training.flow_objective import PreparedStep, StepObjective
from sa3lora.training.loop import ResumableLoop
from sa3lora.training.meter import Meter
from sa3lora.training.readback import Readback
from sa3lora.training.session import Setup
from sa3lora.training.step import broken_clips


@dataclass(frozen=True)
class StepReport:
    """A step that is known to be good, and its scalars by tag."""

    step: int
    scalars: dict[str, float]


@dataclass(frozen=True)
class _Asked:
    """A step that the device was asked for."""

    clip_ids: list[list[str]]
    outcome: Readback
    began: float


class Stepper:
    """Takes steps; everything that changes by them belongs to `loop`, the data and `objective`."""

    def __init__(
        self,
        setup: Setup,
        *,
        objective: StepObjective,
        loop: ResumableLoop,
        lag: int | None = None,
        ahead: bool | None = None,
    ) -> None:
        """Take the parts of a run that is ready for its next step.

        Args:
            setup: Of the run.
            objective: What is minimised.
            loop: Owner of the parameters.
            lag: How many steps the device may be behind; None is 1 for a GPU, and 0 for a CPU,
                which is done when it was asked.
            ahead: Whether to make the next step ready while one is taken, which changes no bit;
                None does for a GPU. A CPU would take the time from the step itself.
        """
        self._setup = setup
        self._objective = objective
        self._loop = loop
        waits = setup.device.type != "cpu"
        self._lag = int(waits) if lag is None else lag
        self._asked: deque[_Asked] = deque()
        self._ahead = (
            Ahead(self._prepare, rewind=setup.data.rewind)
            if ahead or (ahead is None and waits)
            else None
        )
        self._meter = Meter(setup.device, processes=setup.processes)
        self._last_end = -math.inf

    def take(self, *, attempt: int = 0) -> None:
        """Ask for one optimizer step; `finished` tells what came of it.

        Every clip of the step weighs the same, in whichever batch and process it is.

        Args:
            attempt: How many times this step failed before; that many times its clips are passed
                over.
        """
        began = time.perf_counter()
        prepared = self._next(attempt)
        num_clips = sum(map(len, prepared.clip_ids))
        losses = backward_mean(
            prepared.losses(),
            weights=[len(clip_ids) for clip_ids in prepared.clip_ids],
            parameters=self._loop.parameters.values(),
        )
        totals = torch.stack([loss.total.detach() for loss in losses])
        weight = torch.where(totals.isfinite().all(), float(num_clips), torch.nan)
        update = self._loop.update_unchecked(weight=weight)
        self._asked.append(_Asked(prepared.clip_ids, Readback(losses, update), began))

    def finished(self, *, all_of_them: bool = False) -> Iterator[StepReport]:
        """Give the steps that have come to be known, each once, in order.

        Args:
            all_of_them: Wait for every step that was asked for. Nothing that comes from the
                parameters may be kept or shown before that.

        Raises:
            DivergenceError: If the loss or the gradients of one are not finite, in every process.
                `forget` what was asked for and go back.
        """
        while len(self._asked) > (0 if all_of_them else self._lag):
            yield self._close(self._asked.popleft())

    def forget(self) -> None:
        """Let go of steps that were asked for or made ready, because the run goes back."""
        self._asked.clear()
        if self._ahead is not None:
            self._ahead.forget()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Make nothing ready any more."""
        if self._ahead is not None:
            self._ahead.close()

    def first_estimate(self, remaining: int) -> str | None:
        """Say how long the rest will take, once, when the first few steps are behind."""
        return self._meter.first_estimate(remaining)

    def _next(self, attempt: int) -> PreparedStep:
        """Give the next step, and let the one behind it be made ready if there will be one."""
        step = self._loop.step + 1
        make = self._prepare if self._ahead is None else self._ahead.take
        prepared, last = make(step, attempt)
        self._setup.data.take(last)
        if self._ahead is not None and step < self._setup.recipe.train.max_steps:
            self._ahead.begin(step + 1)
        return prepared

    def _prepare(self, step: int, attempt: int) -> tuple[PreparedStep, BatchPlan]:
        """Make a step ready; give its last batch, too, behind which the next step begins."""
        data, accumulate = self._setup.data, self._setup.recipe.train.grad_accum
        for _ in range(attempt * accumulate):
            data.next_round()
        rounds = [data.next_round() for _ in range(accumulate)]
        prepared = self._objective.prepare(rounds, step=step, attempt=attempt)
        return prepared, rounds[-1][self._setup.processes.rank]

    def _close(self, asked: _Asked) -> StepReport:
        losses, update = asked.outcome.read()
        try:
            update.require_finite()
        except DivergenceError as error:
            raise self._with_clips(update.step, losses, asked.clip_ids) from error
        end = time.perf_counter()
        seconds = end - max(asked.began, self._last_end)  # steps overlap, each counts its own part
        self._last_end = end
        return StepReport(update.step, self._meter.measure(losses, update, seconds=seconds))

    def _with_clips(
        self, step: int, losses: Sequence[StepLoss], clip_ids: Sequence[list[str]]
    ) -> DivergenceError:
        """Name the clips of all processes that the failure came from."""
        pairs = zip(losses, clip_ids, strict=True)
        broken = [name for loss, names in pairs for name in broken_clips(loss, names)]
        given = [name for names in clip_ids for name in names]
        everyone = self._setup.processes.gather((broken, given))
        if clips := [name for names, _ in everyone for name in names]:
            return DivergenceError(f"step {step}: the loss is no number", step=step, clips=clips)
        clips = [name for _, names in everyone for name in names]
        reason = f"step {step}: the gradients are no numbers"
        return DivergenceError(reason, step=step, clips=clips)
