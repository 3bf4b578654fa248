"""Files of the released tools: what they compute with them, we compute."""

import json

import pytest
import torch
from safetensors.torch import load_file

from sa3lora.adapters.config import ADAPTER_TYPES
from sa3lora.adapters.deltas import trained_weight
from sa3lora.adapters.files import read_adapter, validate_adapter
from sa3lora.adapters.fold import AdapterStack
from sa3lora.adapters.sites import find_layers
from sa3lora.models.source import resolve_model

# Of io.json: relative error in float32; bases of -xs types move with the number of threads.
TOLERANCE = {adapter_type: 1e-4 if "xs" in adapter_type else 2e-5 for adapter_type in ADAPTER_TYPES}
# The rule for strengths differs from the released one in between for types with magnitudes.
STRENGTHS = {"s0": 0.0, "s1": 1.0}
ADDITIVE_STRENGTHS = {**STRENGTHS, "s05": 0.5, "s2": 2.0}


@pytest.fixture(scope="module")
def case(small_model):
    source = resolve_model(str(small_model))
    cond = json.loads((small_model / "io.json").read_text())["cases"]["cond"]
    text = source.load_text_encoder().encode(cond["prompts"])
    seconds = torch.tensor(cond["seconds_total"])
    io = load_file(small_model / "io.safetensors")
    denoiser = source.load_denoiser()

    @torch.no_grad()
    def velocity():
        return denoiser.velocity(
            io["dit.x"],
            io["dit.t"],
            denoiser.condition(text, seconds),
            keep=io["dit.mask"][:, 0],
            known=io["dit.known"],
        )

    return denoiser, velocity, io


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("adapter_type", ADAPTER_TYPES)
def test_folded_adapters_give_the_released_velocities(case, small_model, adapter_type):
    denoiser, velocity, io = case
    path = small_model / f"adapter_{adapter_type}.safetensors"
    assert validate_adapter(path, check_values=True) == []
    stack = AdapterStack(denoiser)
    stack.add(read_adapter(path), "a", strength=0.0)
    for label, strength in (ADDITIVE_STRENGTHS if "lora" in adapter_type else STRENGTHS).items():
        stack.set_strengths({"a": strength})
        error = relative_error(velocity(), io[f"adapter_{adapter_type}.{label}"])
        assert error < TOLERANCE[adapter_type]
    stack.clear()


@pytest.mark.parametrize("adapter_type", ADAPTER_TYPES)
@pytest.mark.parametrize(("label", "strength"), [("s05", 0.5), ("s2", 2.0)])
def test_the_released_formula_gives_the_released_velocities(
    case, small_model, adapter_type, label, strength
):
    denoiser, velocity, io = case
    adapter = read_adapter(small_model / f"adapter_{adapter_type}.safetensors")
    layers = find_layers(denoiser)
    base = {site: layers[site].weight.clone() for site in adapter.sites}
    for site, weight in base.items():
        trained = trained_weight(
            weight,
            adapter.tensors[site],
            adapter_type=adapter_type,
            scale=adapter.scale(site),
            strength=strength,
        )
        layers[site].weight.copy_(trained)
    error = relative_error(velocity(), io[f"adapter_{adapter_type}.{label}"])
    for site, weight in base.items():
        layers[site].weight.copy_(weight)
    assert error < TOLERANCE[adapter_type]
