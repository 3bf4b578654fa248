import json

import pytest
import torch

from sa3lora.adapters.fold import AdapterStack
from sa3lora.adapters.merge import merge_adapters
from sa3lora.adapters.sites import find_layers
from sa3lora.errors import AdapterError


def sites_of(root, pattern):
    return [site for site in find_layers(root) if pattern in site]


def weights(root):
    return {name: tensor.clone() for name, tensor in root.state_dict().items()}


def test_merged_equals_stacked(root, make_adapter):
    adapters = [
        (make_adapter(r=3, alpha=6.0), 0.7),
        (make_adapter(r=5, alpha=1.0, seed=1, sites=sites_of(root, "to_out")), -0.4),
        (make_adapter(r=2, seed=2, sites=sites_of(root, "layers.1.")), 1.3),
    ]
    stack = AdapterStack(root)
    for number, (adapter, strength) in enumerate(adapters):
        stack.add(adapter, str(number), strength=strength)
    stacked = weights(root)
    stack.clear()
    merged = merge_adapters(adapters)
    stack.add(merged, "merged")
    found = weights(root)
    for name, tensor in stacked.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
    assert merged.config.r == merged.config.alpha == 3 + 5 + 2
    assert {merged.rank(site) for site in merged.sites} == {10}


def test_order_moves_no_bit(make_adapter):
    pairs = [(make_adapter(seed=seed), 0.1 * seed + 0.3) for seed in range(3)]
    hashes = {merge_adapters(order).content_hash for order in (pairs, pairs[::-1])}
    assert len(hashes) == 1


def test_one_adapter_at_full_strength_keeps_its_tensors(make_adapter):
    adapter = make_adapter()
    assert merge_adapters([(adapter, 1.0)]).content_hash == adapter.content_hash


def test_common_patterns_stay_and_others_become_names(root, make_adapter):
    assert (
        merge_adapters([(make_adapter(), 1.0), (make_adapter(seed=1), 1.0)]).config.include is None
    )
    sites = sites_of(root, "layers.0.")
    half = make_adapter(sites=sites)
    other = sites_of(root, "layers.2.")
    merged = merge_adapters([(half, 1.0), (make_adapter(sites=other), 1.0)])
    assert merged.config.include == tuple(sorted([*sites, *other]))


def test_header_tells_what_was_merged(make_adapter):
    shared = {"sa3lora.base_id": "tiny", "sa3lora.dit_hash": "h"}
    one = make_adapter(metadata={**shared, "sa3lora.trigger": "vinyl", "modelspec.title": "V"})
    two = make_adapter(seed=1, metadata={**shared, "sa3lora.trigger": "tape", "sa3lora.step": "9"})
    metadata = merge_adapters([(one, 0.5), (two, -1.0)]).metadata
    assert {key: metadata[key] for key in shared} == shared
    assert set(metadata["sa3lora.trigger"].split("; ")) == {"vinyl", "tape"}
    assert "sa3lora.step" not in metadata
    parts = {item["content_hash"]: item for item in json.loads(metadata["sa3lora.merged_from"])}
    assert parts[one.content_hash]["strength"] == 0.5
    assert parts[one.content_hash]["title"] == "V"
    assert parts[two.content_hash]["strength"] == -1.0


def test_different_hashes_are_not_carried_on(make_adapter):
    one = make_adapter(metadata={"sa3lora.base_id": "medium", "sa3lora.dit_hash": "h1"})
    two = make_adapter(metadata={"sa3lora.base_id": "medium", "sa3lora.dit_hash": "h2"})
    metadata = merge_adapters([(one, 1.0), (two, 1.0)]).metadata
    assert metadata["sa3lora.base_id"] == "medium"
    assert "sa3lora.dit_hash" not in metadata


def test_strength_zero_leaves_an_adapter_out_and_says_so(make_adapter, caplog):
    merged = merge_adapters([(make_adapter(), 1.0), (make_adapter(seed=1), 0.0)])
    assert merged.content_hash == make_adapter().content_hash
    assert "1 adapters at strength 0 are left out" in caplog.text


def test_nothing_to_merge_is_refused(make_adapter):
    with pytest.raises(AdapterError, match="every strength is 0"):
        merge_adapters([(make_adapter(), 0.0)])


def test_types_with_magnitudes_ask_for_the_base(make_adapter):
    with pytest.raises(AdapterError, match=r"dora-rows and lora do together; .* or --into-base"):
        merge_adapters([(make_adapter(), 1.0), (make_adapter("dora-rows"), 1.0)])


def test_a_strength_that_is_not_finite_is_refused(make_adapter):
    with pytest.raises(AdapterError, match="must be finite, got nan"):
        merge_adapters([(make_adapter(), float("nan"))])
