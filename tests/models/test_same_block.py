from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sa3lora.models import ModelSource, same_block
from sa3lora.models.same_block import SameBlock


@pytest.fixture(scope="module")
def block(source: ModelSource, enliven: Callable[[nn.Module], nn.Module]) -> SameBlock:
    live = enliven(SameBlock(source.config.same.decoder, sine=True))
    assert isinstance(live, SameBlock)
    return live


@pytest.mark.parametrize("tokens", [1, 7, 20, 40])
@pytest.mark.parametrize("window", [None, 3])
def test_slices_change_nothing(
    block: SameBlock, monkeypatch: pytest.MonkeyPatch, window: int | None, tokens: int
) -> None:
    x = torch.randn(3, 50, block.pre_norm.gamma.shape[0])
    whole = block(x, window)
    monkeypatch.setattr(same_block, "_SLICE_BYTES", tokens * 4 * block.widest)
    sliced = block(x, window)
    assert_close(sliced, whole, atol=1e-6, rtol=1e-5)


def test_slices_pass_on_the_whole_gradient(
    block: SameBlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(1, 50, block.pre_norm.gamma.shape[0], requires_grad=True)
    (whole,) = torch.autograd.grad(block(x, 3).square().sum(), x)
    monkeypatch.setattr(same_block, "_SLICE_BYTES", 20 * 4 * block.widest)
    (sliced,) = torch.autograd.grad(block(x, 3).square().sum(), x)
    assert_close(sliced, whole, atol=1e-5, rtol=1e-4)
