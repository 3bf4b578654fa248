from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
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


@pytest.mark.parametrize("when", [True, False])
def test_what_is_made_is_kept_only_without_remaking(when: bool) -> None:
    weight, gain = torch.randn(3, 4, requires_grad=True), torch.ones(8)
    x = torch.randn(5, 8, requires_grad=True)
    with remade(_gated, x, gain, when=when) as inner:
        y = functional.linear(inner, weight)
        memory = StorageWeakRef(inner.untyped_storage())
    del inner
    assert memory.expired() is when
    y.sum().backward()


def test_both_of_two_values_are_let_go() -> None:
    x, z = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    gain = torch.rand(8)
    expected = torch.autograd.grad((_gated(x, gain) * _gated(z, gain)).square().sum(), [x, z])
    with (
        remade(_gated, x, gain, when=True) as left,
        remade(_gated, z, gain, when=True) as right,
    ):
        y = left * right
        memories = [StorageWeakRef(value.untyped_storage()) for value in (left, right)]
    del left, right
    assert all(memory.expired() for memory in memories)
    for ours, theirs in zip(torch.autograd.grad(y.square().sum(), [x, z]), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_gradients_it_is_an_ordinary_value() -> None:
    x = torch.randn(5, 8)
    with remade(_gated, x, torch.ones(8), when=True) as inner:
        assert inner.grad_fn is None
        assert torch.equal(inner, _gated(x, torch.ones(8)))


def test_the_backward_pass_makes_it_once_for_value_and_gradient() -> None:
    made = []

    def gated(x: Tensor, gain: Tensor) -> Tensor:
        made.append(torch.is_grad_enabled())
        return _gated(x, gain)

    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    with remade(gated, x, torch.ones(8), when=True) as inner:
        y = functional.linear(inner, weight)
    made.clear()
    y.sum().backward()
    assert made == [True]


def test_a_source_without_gradient_gets_none() -> None:
    x, gain = torch.randn(5, 8, requires_grad=True), torch.ones(8)
    with remade(_gated, x, gain, when=True) as inner:
        inner.sum().backward()
    assert x.grad is not None
    assert gain.grad is None
