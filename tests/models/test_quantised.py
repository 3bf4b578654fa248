from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from sa3lora.errors import ModelError
from sa3lora.models.checkpoint import fill
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.quantised import (
    QuantForm,
    QuantisedLinear,
    QuantKind,
    block_layers,
    quantise,
    quantising,
)
from sa3lora.models.source import resolve_model

KINDS = get_args(QuantKind)


def _weight(rows: int = 48, cols: int = 257, *, seed: int = 0) -> torch.Tensor:
    return 0.03 * torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def _layer(kind: QuantKind, weight: torch.Tensor) -> QuantisedLinear:
    bias = nn.Parameter(torch.linspace(-1, 1, len(weight)), requires_grad=False)
    return QuantisedLinear(quantise(weight, kind), bias, dtype=torch.float32)


def test_int8_is_off_by_at_most_half_a_step_of_its_row() -> None:
    weight = _weight()
    weight[3] *= 100
    held = quantise(weight, "int8")
    error = (held.form.matrix(held.tensors, torch.float32) - weight).abs()
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool((error <= 0.5001 * step).all())
    assert float(error.max()) > 0.4 * float(step.max()), "the bound is tight"


def test_nf4_is_off_by_at_most_half_its_widest_gap_of_a_block() -> None:
    weight = _weight(64, 128)
    weight[3] *= 10
    held = quantise(weight, "nf4")
    error = (held.form.matrix(held.tensors, torch.float32) - weight).abs().view(-1, 64)
    largest = weight.abs().view(-1, 64).amax(dim=1, keepdim=True)
    # Its values from -1 to -0.696 are furthest apart (QLoRA, appendix E); the scale of a block is
    # off by less than 1 % of how far the scales of its 256 neighbours lie apart.
    allowed = 0.5 * (1 - 0.6961928) * largest + 0.01 * (largest.max() - largest.min())
    assert bool((error <= allowed).all())
    assert float((error / largest).max()) > 0.1, "it is 4 bits"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 4), (5, 3), (48, 257), (256, 256)])
def test_the_bytes_are_as_counted(kind: QuantKind, shape: tuple[int, int]) -> None:
    held = quantise(_weight(*shape), kind)
    assert sum(part.numel() * part.itemsize for part in held.tensors) == held.form.num_bytes
    assert held.form.matrix(held.tensors, torch.bfloat16).shape == shape


def test_a_large_weight_takes_little_more_than_its_bits() -> None:
    numbers = 12288 * 1536
    assert QuantForm("int8", (12288, 1536)).num_bytes / numbers == pytest.approx(1.0026, abs=1e-4)
    assert QuantForm("nf4", (12288, 1536)).num_bytes / numbers == pytest.approx(0.5159, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_stay_zeros(kind: QuantKind) -> None:
    held = quantise(torch.zeros(4, 64), kind)
    assert torch.equal(held.form.matrix(held.tensors, torch.float32), torch.zeros(4, 64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_what_a_plain_one_with_its_weight_does(
    kind: QuantKind, dtype: torch.dtype
) -> None:
    layer = _layer(kind, _weight())
    plain = nn.Linear(257, 48).requires_grad_(False)
    plain.weight.copy_(layer.weight)
    plain.bias.copy_(layer.bias)
    plain.to(dtype)
    given = torch.randn(2, 7, 257, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, theirs = (given.clone().requires_grad_() for _ in range(2))
    y, expected = layer(ours), plain(theirs)
    assert torch.equal(y, expected)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    (found,) = torch.autograd.grad((y * weights).sum(), ours)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), theirs)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_keeps_no_full_weight(kind: QuantKind) -> None:
    layer, kept = _layer(kind, _weight(256, 256)), 0
    x = torch.randn(2, 256, requires_grad=True)

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.itemsize
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        layer(x)
    assert kept == layer.form.num_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_decides_the_type_of_products(kind: QuantKind) -> None:
    layer = _layer(kind, _weight())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 257)).dtype == torch.bfloat16
    assert layer(torch.randn(3, 257)).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_loads_with_its_blocks_quantised_and_the_rest_as_it_is(
    small_model: Path, kind: QuantKind
) -> None:
    source = resolve_model(str(small_model))
    plain, held = source.load_denoiser(), source.load_denoiser(quantised=kind)
    layers = block_layers(plain)
    assert block_layers(held).keys() == layers.keys()
    for name, layer in block_layers(held).items():
        assert isinstance(layer, QuantisedLinear)
        expected = quantise(layers[name].weight, kind)
        assert torch.equal(layer.weight, expected.form.matrix(expected.tensors, torch.float32))
    state = held.state_dict()
    for name, tensor in plain.state_dict().items():
        if name.removesuffix(".weight") not in layers:
            assert torch.equal(state.pop(name), tensor)
    assert state == {}
    assert not any(parameter.requires_grad for parameter in held.parameters())


def test_loading_never_holds_the_blocks_in_another_form(small_model: Path) -> None:
    source = resolve_model(str(small_model))
    state = source.load_denoiser().state_dict()
    seen: list[weakref.ref[torch.Tensor]] = []

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name in state:
            assert all(ref() is None for ref in seen[:-1]), "an earlier weight is still there"
            tensor = state[name].clone()
            if name.removesuffix(".weight") in layers:
                seen.append(weakref.ref(tensor))
            yield name, tensor
            del tensor

    with torch.device("meta"):
        denoiser = Denoiser(source.config)
    layers = block_layers(denoiser)
    rest = quantising(denoiser, tensors(), kind="nf4", device="cpu", dtype=torch.float32)
    fill(denoiser, rest, device="cpu", dtype=torch.float32)
    assert len(seen) == len(layers)


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(ModelError, match=r"nf4 needs bitsandbytes, .* 'sa3lora\[quant\]'"):
        quantise(_weight(), "nf4")
