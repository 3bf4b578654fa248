import dataclasses

import pytest
import torch

from sa3lora.adapters.fold import AdapterStack
from sa3lora.adapters.sites import find_layers
from sa3lora.adapters.stacked import (
    STACK_KEY,
    Stacked,
    fold_stack,
    missing_from_stack,
    stack_metadata,
    stack_of,
)


def weights_of(root):
    return {site: layer.weight.detach().clone() for site, layer in find_layers(root).items()}


@pytest.mark.parametrize("kind", ["lora", "dora-rows", "bora-xs"])
def test_a_folded_stack_is_what_playing_it_computes_with(root, make_adapter, kind):
    pairs = [(make_adapter(kind), 0.7), (make_adapter("lora"), -1.5)]
    before = weights_of(root)
    untouched = fold_stack(root, pairs, before.__getitem__)
    folded = weights_of(root)
    assert all(torch.equal(untouched[site], before[site]) for site in untouched)
    with torch.no_grad():
        for site, layer in find_layers(root).items():
            layer.weight.copy_(before[site])
    stack = AdapterStack(root)
    for number, (adapter, strength) in enumerate(reversed(pairs)):
        stack.add(adapter, str(number), strength=strength)
    played = weights_of(root)
    assert any(not torch.equal(played[site], before[site]) for site in before)
    assert all(torch.equal(folded[site], played[site]) for site in before)


def test_a_coarse_model_gets_the_exact_sum_rounded_once(root, make_adapter):
    exact = weights_of(root)
    adapter = make_adapter("lora")
    root.to(torch.bfloat16)
    fold_stack(root, [(adapter, 1.0)], exact.__getitem__)
    for site, weight in weights_of(root).items():
        tensors = adapter.tensors[site]
        change = adapter.scale(site) * tensors["lora_B"] @ tensors["lora_A"]
        rounded = (exact[site].flatten(1) + change).bfloat16().reshape(weight.shape)
        # One unit in the last place: the scale may be multiplied in before or after the product.
        torch.testing.assert_close(weight, rounded, rtol=2**-7, atol=1e-6)


def test_a_header_remembers_a_stack_in_whatever_order_it_was_given(make_adapter):
    stack = [Stacked("tape", "b" * 64, 0.3), Stacked("vinyl", "a" * 64, 0.1 + 0.2)]
    metadata = stack_metadata(stack)
    assert metadata == stack_metadata(stack[::-1])
    assert stack_of(make_adapter("lora", metadata=metadata)) == (stack[1], stack[0])
    assert stack_metadata([]) == {}
    assert stack_of(make_adapter("lora")) == ()


@pytest.mark.parametrize("broken", ["{", "3", '[{"name": "a"}]', "[1]"])
def test_a_header_that_makes_no_sense_names_no_stack(make_adapter, broken):
    assert stack_of(make_adapter("lora", metadata={STACK_KEY: broken})) == ()


def test_what_is_missing_or_at_another_strength_is_said(make_adapter):
    below = make_adapter("lora")
    remembered = stack_metadata([Stacked("vinyl", below.content_hash, 0.5)])
    above = dataclasses.replace(make_adapter("dora-rows"), metadata=remembered)
    assert missing_from_stack({"new": (above, 1.0), "v": (below, 0.5)}) == []
    for played in ({"new": (above, 1.0)}, {"new": (above, 1.0), "v": (below, 0.6)}):
        (note,) = missing_from_stack(played)
        assert note.startswith("new was trained on top of vinyl at strength 0.5, which is not")
