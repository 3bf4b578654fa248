from __future__ import annotations

import pytest
import torch

from sa3lora.probe import StepLoss
from sa3lora.training.optim import Update
from sa3lora.training.readback import Readback


def _loss(clips: int, prior: bool) -> StepLoss:
    numbers = torch.randn(3 + 2 * clips, requires_grad=True) * 1
    total, signal, context = numbers[:3]
    per_item, t = numbers[3:].detach().split(clips)
    return StepLoss(
        total=total, signal=signal.detach(), context=context.detach(), per_item=per_item, t=t,
        num_frames=7, num_slots=9, prior=torch.tensor(0.25) if prior else None,
    )  # fmt: skip


@pytest.mark.parametrize("prior", [False, True])
def test_what_is_read_is_what_was_there_without_its_graph(prior: bool) -> None:
    losses = [_loss(1, prior), _loss(3, prior)]
    update = Update(step=4, grad_norm=torch.tensor(1.5), lr=0.1)
    found, told = Readback(losses, update).read()
    assert (told.step, float(told.grad_norm), told.lr) == (4, 1.5, 0.1)
    for one, other in zip(losses, found, strict=True):
        for name in ("total", "signal", "context", "per_item", "t"):
            assert torch.equal(getattr(one, name), getattr(other, name))
            assert not getattr(other, name).requires_grad
        assert (one.num_frames, one.num_slots) == (other.num_frames, other.num_slots)
        assert (other.prior is not None) is prior
        assert other.prior is None or float(other.prior) == 0.25
