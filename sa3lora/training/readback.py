"""Numbers of a device that the host reads later, when they are there anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sa3lora.probe import StepLoss
from sa3lora.training.optim import Update


class Readback:
    """Losses and gradient norm of a step, on their way to the host.

    The copy is asked for at once, in one piece and behind the step's own work, so that reading it
    waits for that step and for nothing that came after it.
    """

    def __init__(self, losses: Sequence[StepLoss], update: Update) -> None:
        """Ask for the copy; graphs are let go."""
        self._losses = [replace(loss, total=loss.total.detach()) for loss in losses]
        self._update = update
        tensors = [update.grad_norm, *(each for loss in losses for each in _tensors(loss))]
        flat = torch.cat([each.detach().float().reshape(-1) for each in tensors])
        self._event: torch.cuda.Event | None = None
        self._values = flat
        if flat.device.type == "cuda":
            self._values = torch.empty(flat.shape, pin_memory=True)
            self._values.copy_(flat, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> tuple[list[StepLoss], Update]:
        """Wait for the copy and give the same losses and update on the host."""
        if self._event is not None:
            self._event.synchronize()
        values = self._values.cpu()
        update = replace(self._update, grad_norm=values[0])
        losses, place = [], 1
        for loss in self._losses:
            parts = []
            for each in _tensors(loss):
                parts.append(values[place : place + each.numel()].view(each.shape))
                place += each.numel()
            total, signal, context, per_item, t, *prior = parts
            losses.append(
                replace(
                    loss, total=total, signal=signal, context=context, per_item=per_item, t=t,
                    prior=prior[0] if prior else None,
                )
            )  # fmt: skip
        return losses, update


def _tensors(loss: StepLoss) -> list[Tensor]:
    found = [loss.total, loss.signal, loss.context, loss.per_item, loss.t]
    return found if loss.prior is None else [*found, loss.prior]
