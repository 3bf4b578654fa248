"""Learning rate, gradient clipping, and what is known of a step.

The learning rate is a pure function of the step, so that a checkpoint needs nothing but the step
to go on with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sa3lora.errors import DivergenceError, RecipeError

SCHEDULES = ("constant", "cosine", "linear", "inverse")
#: Schedules whose every step depends on the length of the run.
ENDING_SCHEDULES = ("cosine", "linear")

# Values of the released templates for the inverse schedule (InverseLR).
_INVERSE_GAMMA = 1e6
_INVERSE_POWER = 0.5
_INVERSE_WARMUP = 0.995


@dataclass(frozen=True)
class LearningRate:
    """Learning rate of each step.

    Attributes:
        peak: The rate that the schedule starts from, after the warm-up.
        schedule: `constant`; `cosine` or `linear` down to `floor` at `max_steps`; `inverse`, which
            falls with the square root of the step, not below `floor`, and has an exponential
            warm-up of its own (0.5 % at the first step, 92 % at the 500th).
        warmup_steps: Steps of a linear warm-up from 0, on top of any schedule.
        max_steps: Length of the run.
        floor: The rate that a schedule falls to.
    """

    peak: float
    schedule: str
    warmup_steps: int
    max_steps: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise RecipeError(
                f"optim.schedule: must be one of {', '.join(SCHEDULES)}, got {self.schedule}"
            )

    def at(self, step: int) -> float:
        """Return the rate of the update that leads from `step` finished steps to the next."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps > 0 else 1.0
        return warmup * self._scheduled(step)

    def _scheduled(self, step: int) -> float:
        if self.schedule in ENDING_SCHEDULES:
            span = max(1, self.max_steps - self.warmup_steps)
            done = min(1.0, max(0, step - self.warmup_steps) / span)
            cosine = 0.5 * (1.0 + math.cos(math.pi * done))
            left = cosine if self.schedule == "cosine" else 1.0 - done
            return self.floor + (self.peak - self.floor) * left
        if self.schedule == "inverse":
            fallen = self.peak * (1.0 + step / _INVERSE_GAMMA) ** -_INVERSE_POWER
            return float((1.0 - _INVERSE_WARMUP ** (step + 1)) * max(fallen, self.floor))
        return self.peak


@dataclass(frozen=True)
class Update:
    """What one optimizer step did.

    Attributes:
        step: Its number, counted from 1.
        grad_norm: Norm of the gradients before they were clipped, a scalar where they lie; no
            number if a loss or a gradient was none.
        lr: The rate it was taken with.
    """

    step: int
    grad_norm: Tensor
    lr: float

    def require_finite(self) -> None:
        """Check the step, for which a GPU is waited for until it is there.

        Raises:
            DivergenceError: If loss or gradients were no numbers.
        """
        if not math.isfinite(norm := float(self.grad_norm)):
            raise DivergenceError(
                f"Step {self.step}: the norm of the gradients is {norm}. Lower optim.lr, or "
                "train with train.base_dtype=float32; earlier checkpoints are untouched.",
                step=self.step,
            )


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale gradients down to a global norm of `max_norm`, if given, and return what it was."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
