"""Optimizer, learning rate and gradient clipping.

The learning rate is a pure function of the step, so that a checkpoint needs nothing but the step
to go on with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sa3lora.errors import RecipeError

SCHEDULES = ("constant", "cosine", "inverse")

# Values of the released templates for the inverse schedule (InverseLR).
_INVERSE_GAMMA = 1e6
_INVERSE_POWER = 0.5
_INVERSE_WARMUP = 0.995


@dataclass(frozen=True)
class LearningRate:
    """Learning rate of each step.

    Attributes:
        peak: The rate that the schedule starts from, after the warm-up.
        schedule: `constant`; `cosine` down to 0 at `max_steps`; `inverse`, which falls with the
            square root of the step and has an exponential warm-up of its own (0.5 % at the first
            step, 92 % at the 500th).
        warmup_steps: Steps of a linear warm-up, on top of any schedule.
        max_steps: Length of the run.
    """

    peak: float
    schedule: str
    warmup_steps: int
    max_steps: int

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise RecipeError(
                f"optim.schedule: must be one of {', '.join(SCHEDULES)}, got {self.schedule}"
            )

    def at(self, step: int) -> float:
        """Return the rate of the update that leads from `step` finished steps to the next."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps > 0 else 1.0
        return warmup * self.peak * self._decay(step)

    def _decay(self, step: int) -> float:
        if self.schedule == "cosine":
            span = max(1, self.max_steps - self.warmup_steps)
            done = min(1.0, max(0, step - self.warmup_steps) / span)
            return 0.5 * (1.0 + math.cos(math.pi * done))
        if self.schedule == "inverse":
            return float(
                (1.0 - _INVERSE_WARMUP ** (step + 1))
                * (1.0 + step / _INVERSE_GAMMA) ** -_INVERSE_POWER
            )
        return 1.0


def make_optimizer(
    parameters: Mapping[str, nn.Parameter],
    *,
    name: str,
    lr: float,
    weight_decay: float,
    betas: Sequence[float],
) -> torch.optim.Optimizer:
    """Build the optimizer; magnitudes are never decayed, as decay would shrink the base's norms.

    Raises:
        RecipeError: If the optimizer is not one that this version has.
    """
    if name != "adamw":
        raise RecipeError(f"optim.name: must be adamw, got {name}")
    decayed = [p for key, p in parameters.items() if "magnitude" not in key]
    kept = [p for key, p in parameters.items() if "magnitude" in key]
    groups = [{"params": decayed, "weight_decay": weight_decay}]
    if kept:
        groups.append({"params": kept, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=1e-8)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale gradients down to a global norm of `max_norm`, if given, and return what it was."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
