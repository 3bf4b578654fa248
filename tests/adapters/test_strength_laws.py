"""Laws of strength, for every type, random shapes, stacks and stored types.

Tolerances, relative to the norm of the exact change or weight: float32 1e-5, float16 one rounding
(2**-11 of every weight), at strength 1 against the released formula and for continuity. Strength 0
and the order of a stack are exact: no bit moves.
"""

from __future__ import annotations

import itertools

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sa3lora.adapters.config import ADAPTER_TYPES, TENSORS, AdapterConfig
from sa3lora.adapters.deltas import trained_weight
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.fold import AdapterStack

ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11}
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

dtypes = st.sampled_from(list(ROUNDING))
strengths = st.floats(-2.0, 2.0, allow_nan=False).filter(lambda s: abs(s) > 1e-3)
seeds = st.integers(0, 2**31 - 1)
types = st.sampled_from(ADAPTER_TYPES)
sides = st.integers(1, 40)


@st.composite
def layers(draw):
    """Draw a linear layer or a convolution of random size, type and values."""
    generator = torch.Generator().manual_seed(draw(seeds))
    fan_out, fan_in, kernel = draw(sides), draw(sides), draw(st.sampled_from([None, 1, 3]))
    layer = nn.Linear(fan_in, fan_out) if kernel is None else nn.Conv1d(fan_in, fan_out, kernel)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    return nn.ModuleDict({"layer": layer.requires_grad_(False).to(draw(dtypes))})


def make_adapter(root, adapter_type, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = root["layer"].weight.detach().float().flatten(1)
    fan_out, fan_in = matrix.shape
    r = int(torch.randint(1, min(fan_out, fan_in) + 1, (1,), generator=generator))
    rows, cols = matrix.norm(dim=1), matrix.norm(dim=0)
    known = {
        "lora_A": torch.randn(r, fan_in, generator=generator) / fan_in**0.5,
        "lora_B": 0.3 * torch.randn(fan_out, r, generator=generator),
        "M_xs": 0.3 * torch.randn(r, r, generator=generator),
        "magnitude_r": rows * (0.5 + torch.rand(fan_out, generator=generator)),
        "magnitude_c": cols * (0.5 + torch.rand(fan_in, generator=generator)),
    }
    known["magnitude"] = known["magnitude_r" if "rows" in adapter_type else "magnitude_c"]
    tensors = {"layer": {name: known[name] for name in TENSORS[adapter_type]}}
    return AdapterFile(AdapterConfig(type=adapter_type, r=r, lora_alpha=2.0 * r), tensors)


def trained(root, adapter):
    return trained_weight(
        root["layer"].weight, adapter.tensors["layer"],
        adapter_type=adapter.config.type, scale=adapter.scale("layer"),
    )  # fmt: skip


@few
@given(layers(), st.lists(st.tuples(types, strengths), min_size=1, max_size=3), seeds)
def test_strength_zero_is_the_base_bit_for_bit(root, stacked, seed):
    before = root["layer"].weight.clone()
    stack = AdapterStack(root)
    for number, (adapter_type, strength) in enumerate(stacked):
        stack.add(make_adapter(root, adapter_type, seed + number), str(number), strength=strength)
    stack.set_strengths(dict.fromkeys(stack.names, 0.0))
    assert torch.equal(root["layer"].weight, before)


@few
@given(layers(), types, seeds)
def test_strength_one_is_as_trained(root, adapter_type, seed):
    weight, adapter = root["layer"].weight, make_adapter(root, adapter_type, seed)
    expected = trained(root, adapter)
    scale = expected.abs().max() + weight.abs().max().float()
    AdapterStack(root).add(adapter, "a")
    allowed = (ROUNDING[weight.dtype] + 1e-5) * scale
    assert (weight.float() - expected).abs().max() <= allowed


@few
@given(layers(), types, strengths, seeds)
def test_a_little_more_strength_is_a_little_more_of_the_change(root, adapter_type, strength, seed):
    weight, adapter = root["layer"].weight, make_adapter(root, adapter_type, seed)
    change = trained(root, adapter) - weight.float()
    stack = AdapterStack(root)
    stack.add(adapter, "a", strength=strength)
    at = weight.float().clone()
    stack.set_strengths({"a": strength + 1e-3})
    rounding = 2.0 * ROUNDING[weight.dtype] * (at.abs() + weight.float().abs())
    allowed = 1e-3 * change.abs() * (1 + 1e-3) + rounding + 1e-5 * 1e-3
    assert ((weight.float() - at).abs() <= allowed + 1e-6 * change.abs().max()).all()


@few
@given(layers(), st.lists(st.tuples(types, strengths), min_size=2, max_size=3), seeds)
def test_the_order_of_a_stack_moves_no_bit(root, stacked, seed):
    adapters = [
        (make_adapter(root, adapter_type, seed + number), strength)
        for number, (adapter_type, strength) in enumerate(stacked)
    ]
    results = []
    for order in itertools.permutations(range(len(adapters))):
        stack = AdapterStack(root)
        for number in order:
            stack.add(adapters[number][0], str(number), strength=adapters[number][1])
        results.append(root["layer"].weight.clone())
        stack.clear()
    assert all(torch.equal(results[0], other) for other in results)


@few
@given(layers(), types, strengths, seeds)
def test_the_official_rule_agrees_where_the_rules_are_the_same(root, adapter_type, strength, seed):
    weight, adapter = root["layer"].weight, make_adapter(root, adapter_type, seed)
    at = strength if adapter_type.startswith("lora") else 1.0
    results = []
    for rule in ("exact", "official"):
        stack = AdapterStack(root, strength_rule=rule)
        stack.add(adapter, "a", strength=at)
        results.append(weight.float().clone())
        stack.clear()
    allowed = (2.0 * ROUNDING[weight.dtype] + 1e-5) * (results[0].abs().max() + 1.0) * 2.0
    assert (results[0] - results[1]).abs().max() <= allowed
