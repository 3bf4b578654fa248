"""The scalars of a step: losses, speed, padding and memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

from sa3lora.probe import StepLoss
from sa3lora.training.optim import Update
from sa3lora.training.processes import Processes
from sa3lora.training.tracking import bucket_losses

_FIRST_STEPS = 5


class Meter:
    """Turns the losses of a step's micro-batches into scalars by tag."""

    def __init__(self, device: torch.device, *, processes: Processes) -> None:
        """Start a new measurement."""
        self._device = device
        self._processes = processes
        self._times: list[float] = []

    def measure(
        self, losses: Sequence[StepLoss], update: Update, *, seconds: float
    ) -> dict[str, float]:
        """Give everything to log about one step, of all processes together.

        Losses are means over clips; speed and padding are sums; memory is that of this process.

        Args:
            losses: Of this process' micro-batches, on the host.
            update: The optimizer step.
            seconds: What all of it took.
        """
        self._times.append(seconds)
        everyone = [one for group in self._processes.gather(_plain(losses)) for one in group]
        clips = sum(len(one["t"]) for one in everyone)
        frames = sum(one["frames"] for one in everyone)
        slots = sum(one["slots"] for one in everyone)

        def mean(name: str) -> float:
            return float(sum(one[name] * len(one["t"]) for one in everyone)) / clips

        t = [level for one in everyone for level in one["t"]]
        per_item = [value for one in everyone for value in one["per_item"]]
        return {
            "train/loss": mean("total"),
            "train/signal": mean("signal"),
            "train/context": mean("context"),
            **({"train/prior": mean("prior")} if "prior" in everyone[0] else {}),
            **bucket_losses(t, per_item),
            "optim/lr": update.lr,
            "optim/grad_norm": float(update.grad_norm),
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


def _plain(losses: Sequence[StepLoss]) -> list[dict[str, Any]]:
    """Give what is logged of each batch as numbers that can be sent to another process."""
    return [
        {
            "total": float(loss.total),
            "signal": float(loss.signal),
            "context": float(loss.context),
            "t": loss.t.tolist(),
            "per_item": loss.per_item.tolist(),
            "frames": loss.num_frames,
            "slots": loss.num_slots,
            **({} if loss.prior is None else {"prior": float(loss.prior)}),
        }
        for loss in losses
    ]


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
