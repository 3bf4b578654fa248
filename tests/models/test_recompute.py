from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sa3lora.models.recompute import remade


def _gated(x: Tensor, gain: Tensor) -> Tensor:
    value, gate = (x * gain).chunk(2, dim=-1)
    return value * functional.silu(gate)


@pytest.mark.parametrize("autocast", [True, False])
def test_values_and_gradients_are_the_same_bit_for_bit(autocast: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 4, requires_grad=True)
    x, gain = torch.randn(5, 8, requires_grad=True), torch.rand(8, requires_grad=True)
    results = []
    for when in (False, True):
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
            remade(_gated, x, gain, when=when) as inner,
        ):
            y = functional.linear(inner, weight)
        total = y.float().square().sum()
        results.append([y, *torch.autograd.grad(total, [x, gain, weight])])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_what_is_made_is_not_kept_and_its_source_is() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    x = torch.randn(5, 8, requires_grad=True)
    kept = []
    for when in (False, True):
        with remade(_gated, x * 1, torch.ones(8), when=when) as inner:
            y = functional.linear(inner, weight)
        storage = weakref.ref(inner.untyped_storage())
        watched = weakref.ref(inner)
        del inner
        kept.append(watched() is not None or storage() is not None)
        y.sum().backward()
    assert kept[1] is False


def test_without_gradients_it_is_an_ordinary_value() -> None:
    x = torch.randn(5, 8)
    with remade(_gated, x, torch.ones(8), when=True) as inner:
        assert inner.grad_fn is None
        assert torch.equal(inner, _gated(x, torch.ones(8)))


def test_a_source_without_gradient_gets_none() -> None:
    x, gain = torch.randn(5, 8, requires_grad=True), torch.ones(8)
    with remade(_gated, x, gain, when=True) as inner:
        inner.sum().backward()
    assert x.grad is not None
    assert gain.grad is None
