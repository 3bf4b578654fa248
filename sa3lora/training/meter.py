"""The scalars of a step: losses, speed, padding and memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from sa3lora.probe import StepLoss
from sa3lora.training.loop import Update
from sa3lora.training.tracking import bucket_losses

_FIRST_STEPS = 5


class Meter:
    """Turns the losses of a step's micro-batches into scalars by tag."""

    def __init__(self, device: torch.device) -> None:
        """Start a new measurement."""
        self._device = device
        self._times: list[float] = []

    def measure(
        self, losses: Sequence[StepLoss], update: Update, *, seconds: float
    ) -> dict[str, float]:
        """Give everything to log about one step.

        Args:
            losses: Of the micro-batches.
            update: The optimizer step.
            seconds: What all of it took.
        """
        self._times.append(seconds)
        count = len(losses)
        frames = sum(loss.num_frames for loss in losses)
        slots = sum(loss.num_slots for loss in losses)
        clips = sum(len(loss.t) for loss in losses)
        t = [level for loss in losses for level in loss.t.tolist()]
        per_item = [value for loss in losses for value in loss.per_item.tolist()]
        return {
            "train/loss": sum(float(loss.total.detach()) for loss in losses) / count,
            "train/signal": sum(float(loss.signal) for loss in losses) / count,
            "train/context": sum(float(loss.context) for loss in losses) / count,
            **_prior(losses),
            **bucket_losses(t, per_item),
            "optim/lr": update.lr,
            "optim/grad_norm": update.grad_norm,
            "speed/clips_per_s": clips / seconds,
            "speed/frames_per_s": frames / seconds,
            "speed/padding_waste": 1.0 - frames / slots,
            "memory/peak_gb": peak_memory(self._device) / 1e9,
        }

    def first_estimate(self, remaining: int) -> str | None:
        """Say how long the rest will take, once, when the first few steps are behind."""
        if len(self._times) != _FIRST_STEPS or remaining == 0:
            return None
        # The first step also warms caches up and compiles.
        a_step = sum(self._times[1:]) / (_FIRST_STEPS - 1)
        return (
            f"{a_step:.2f} s a step, so about {_duration(remaining * a_step)} to go; "
            f"peak memory {peak_memory(self._device) / 1e9:.2f} GB"
        )


def _prior(losses: Sequence[StepLoss]) -> dict[str, float]:
    values = [float(loss.prior) for loss in losses if loss.prior is not None]
    return {"train/prior": sum(values) / len(values)} if values else {}


def peak_memory(device: torch.device) -> int:
    """Return the most memory that was in use so far, in bytes: of the GPU, else of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil  # comes with accelerate

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
