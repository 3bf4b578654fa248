from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.fused import low_rank_linear
from sa3lora.adapters.inject import adapter_parameters, inject_adapter
from sa3lora.adapters.norms import row_norms, row_squares


def _factors(*, bias: bool, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    torch.manual_seed(3)
    return {
        "x": torch.randn(2, 7, 10, dtype=dtype),
        "weight": torch.randn(6, 10, dtype=dtype),
        "bias": torch.randn(6, dtype=dtype) if bias else None,
        "down": torch.randn(3, 10, dtype=dtype),
        "up": torch.randn(6, 3, dtype=dtype),
        "rows": torch.rand(6, dtype=dtype) + 0.5,
    }


def _written_out(parts: dict[str, Any]) -> Tensor:
    x, weight, bias, down, up, rows = parts.values()
    changed = weight + up @ down
    if rows is not None:
        changed = rows[:, None] * changed
    return functional.linear(x, changed, bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("magnitudes", [True, False])
def test_output_and_gradients_are_those_of_the_formula(bias: bool, magnitudes: bool) -> None:
    parts = _factors(bias=bias)
    if not magnitudes:
        parts["rows"] = None
    trained = [parts[name] for name in ("x", "down", "up", "rows") if parts[name] is not None]
    for tensor in trained:
        tensor.requires_grad_(True)
    expected = _written_out(parts)
    found = low_rank_linear(
        parts["x"], parts["weight"], parts["bias"],
        down=parts["down"], up=parts["up"], rows=parts["rows"],
    )  # fmt: skip
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), trained)
    given = torch.autograd.grad((found * weights).sum(), trained)
    for ours, theirs in zip(given, wanted, strict=True):
        # gradients of parameters are float32 by contract
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_a_fresh_change_leaves_the_base_bit_for_bit(bias: bool) -> None:
    parts = _factors(bias=bias, dtype=torch.float32)
    found = low_rank_linear(
        parts["x"], parts["weight"], parts["bias"],
        down=parts["down"], up=torch.zeros(6, 3), rows=torch.ones(6),
    )  # fmt: skip
    assert torch.equal(found, functional.linear(parts["x"], parts["weight"], parts["bias"]))


def test_a_row_that_is_scaled_to_nothing_gives_no_gradient_that_is_no_number() -> None:
    parts = _factors(bias=True, dtype=torch.float32)
    rows = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0], requires_grad=True)
    up = parts["up"].requires_grad_(True)
    found = low_rank_linear(
        parts["x"], parts["weight"], parts["bias"], down=parts["down"], up=up, rows=rows
    )
    found.square().sum().backward()
    assert torch.isfinite(rows.grad).all()
    assert torch.isfinite(up.grad).all()


def test_the_weight_of_the_base_gets_no_gradient() -> None:
    parts = _factors(bias=False, dtype=torch.float32)
    up = parts["up"].requires_grad_(True)
    y = low_rank_linear(parts["x"], parts["weight"], None, down=parts["down"], up=up)
    y.sum().backward()
    assert parts["weight"].grad is None
    assert up.grad.dtype == torch.float32


def test_autocast_computes_in_its_type_and_keeps_float32_gradients() -> None:
    parts = _factors(bias=True, dtype=torch.float32)
    up = parts["up"].requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        y = low_rank_linear(
            parts["x"], parts["weight"], parts["bias"],
            down=parts["down"], up=up, rows=parts["rows"],
        )  # fmt: skip
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert up.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), _written_out(parts), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("kind", ["lora", "dora-rows", "lora-xs", "dora-rows-xs"])
def test_an_injected_layer_computes_the_same_with_and_without_fusing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    root = nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 12, bias=False))
    inject_adapter(root, AdapterConfig(type=kind, r=2))
    trained = [parameter for _, parameter in adapter_parameters(root)]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(4, 12)

    def run() -> list[Tensor]:
        y = root(x)
        return [y, *torch.autograd.grad(y.square().sum(), trained)]

    fused = run()
    monkeypatch.setattr("sa3lora.adapters.variants._fusible", lambda layer: None)
    for ours, theirs in zip(fused, run(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def test_magnitudes_get_their_whole_gradient_through_the_norm() -> None:
    torch.manual_seed(1)
    root = nn.Sequential(nn.Linear(8, 6, bias=False))
    weight = root[0].weight.detach().clone()
    inject_adapter(root, AdapterConfig(type="dora-rows", r=2))
    named = dict(adapter_parameters(root))
    with torch.no_grad():
        for parameter in named.values():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = torch.randn(5, 8)
    down, up, magnitude = (named[f"0.{n}"] for n in ("lora_A", "lora_B", "magnitude"))
    norms = row_norms(weight, down, up, squares=row_squares(weight))
    expected = x @ ((magnitude / norms)[:, None] * (weight + up @ down)).T
    wanted = torch.autograd.grad(expected.square().sum(), [down, up, magnitude])
    given = torch.autograd.grad(root(x).square().sum(), [down, up, magnitude])
    for ours, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
