"""One file from several with magnitudes does exactly what the stack does."""

import pytest
import torch

from sa3lora.adapters.exact import exact_type
from sa3lora.adapters.fold import AdapterStack
from sa3lora.adapters.merge import merge_adapters, merge_to_rank
from sa3lora.adapters.methods import Method, merged_change
from sa3lora.adapters.sites import find_layers
from sa3lora.errors import AdapterError


@pytest.fixture
def weights(root):
    layers = find_layers(root)
    kept = {site: layer.weight.detach().clone() for site, layer in layers.items()}
    return kept.__getitem__


def changes(root, weights, adapters):
    """What a stack changes of every weight."""
    stack = AdapterStack(root)
    for number, (adapter, strength) in enumerate(adapters):
        stack.add(adapter, str(number), strength=strength)
    layers = find_layers(root)
    found = {site: layers[site].weight.detach() - weights(site) for site in layers}
    stack.clear()
    return found


@pytest.mark.parametrize(
    ("types", "merged_type"),
    [
        (("lora", "lora"), "lora"),
        (("lora", "lora-xs"), "lora"),
        (("lora", "dora-rows"), "dora-rows"),
        (("dora-rows", "dora-rows-xs", "lora-xs"), "dora-rows"),
        (("dora-cols", "lora"), "dora-cols"),
        (("dora-cols", "dora-cols-xs", "lora-xs"), "dora-cols"),
    ],
)
def test_merged_equals_stacked(root, weights, make_adapter, types, merged_type):
    half = [site for site in find_layers(root) if "layers.1" in site or "conv" in site]
    adapters = [
        (make_adapter(kind, seed=n, r=2 + n, alpha=3.0, sites=half if n == 1 else None), strength)
        for n, (kind, strength) in enumerate(zip(types, (0.7, -0.4, 1.3), strict=False))
    ]
    merged = merge_adapters(adapters, weights=weights)
    assert merged.config.type == merged_type
    assert merged.config.r == merged.config.alpha == sum(a.config.r for a, _ in adapters)
    expected = changes(root, weights, adapters)
    found = changes(root, weights, [(merged, 1.0)])
    for site, change in expected.items():
        torch.testing.assert_close(found[site], change, rtol=1e-5, atol=2e-6)
    assert max(float(change.norm()) for change in expected.values()) > 0.1


def test_order_moves_no_bit(weights, make_adapter):
    pairs = [(make_adapter(kind), 0.4) for kind in ("dora-rows", "lora", "dora-rows-xs")]
    hashes = {merge_adapters(p, weights=weights).content_hash for p in (pairs, pairs[::-1])}
    assert len(hashes) == 1


@pytest.mark.parametrize("types", [("dora-rows", "dora-cols"), ("bora",), ("bora-xs", "lora")])
def test_other_mixtures_have_no_exact_file(types):
    assert exact_type(types) is None


def test_a_mixture_without_an_exact_file_says_what_to_do(weights, make_adapter):
    pairs = [(make_adapter("bora"), 1.0), (make_adapter(), 1.0)]
    with pytest.raises(
        AdapterError, match=r"bora and lora do together; pass --rank R .*--into-base"
    ):
        merge_adapters(pairs, weights=weights)


def test_strengths_that_cancel_the_base_are_refused(weights, make_adapter):
    adapter = make_adapter("dora-rows")
    for group in adapter.tensors.values():
        group["lora_B"].zero_()
        group["magnitude"].zero_()
    with pytest.raises(AdapterError, match=r"rows of the base vanish in .* Change a strength"):
        merge_adapters([(adapter, 1.0)], weights=weights)


def test_a_row_without_a_base_keeps_what_is_put_there(root, make_adapter):
    site = "model.transformer.layers.0.self_attn.to_out"
    layer = find_layers(root)[site]
    layer.weight.data[3].zero_()
    base = layer.weight.detach().clone()
    pairs = [(make_adapter("dora-rows", sites=[site]), 1.0), (make_adapter(sites=[site]), 0.5)]
    weights = {site: base}.__getitem__
    merged = merge_adapters(pairs, weights=weights)
    found = {}
    for name, stack in (("stack", pairs), ("file", [(merged, 1.0)])):
        loaded = AdapterStack(root)
        for number, (adapter, strength) in enumerate(stack):
            loaded.add(adapter, str(number), strength=strength)
        found[name] = layer.weight.detach().clone()
        loaded.clear()
    torch.testing.assert_close(found["file"], found["stack"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["lora", "dora-cols", "bora-xs"])
def test_a_rank_that_suffices_loses_nothing(root, weights, make_adapter, kind):
    pairs = [(make_adapter(kind), 0.8), (make_adapter(seed=1), -0.5)]
    merged, lost = merge_to_rank(pairs, 16, weights=weights, method=Method())
    expected, found = changes(root, weights, pairs), changes(root, weights, [(merged, 1.0)])
    for site, change in expected.items():
        torch.testing.assert_close(found[site], change, rtol=1e-4, atol=1e-5)
    assert max(one.share for one in lost.values()) < 1e-9


@pytest.mark.parametrize("kind", ["lora", "bora"])
def test_a_lower_rank_is_the_best_there_is_and_tells_what_it_loses(weights, make_adapter, kind):
    pairs = [(make_adapter(kind, r=5), 0.9), (make_adapter(kind, r=4, seed=1), 0.4)]
    merged, lost = merge_to_rank(pairs, 2, weights=weights, method=Method())
    for site in merged.sites:
        whole = merge_to_rank(pairs, 16, weights=weights, method=Method())[0].tensors[site]
        change = (whole["lora_B"] @ whole["lora_A"]).double()
        values = torch.linalg.svdvals(change)
        kept = merged.tensors[site]["lora_B"].double() @ merged.tensors[site]["lora_A"].double()
        error = float((change - kept).square().sum())
        assert error == pytest.approx(float(values[2:].square().sum()), rel=1e-3)
        assert lost[site].lost == pytest.approx(error, rel=1e-3)


def terms(make_adapter, site, strengths):
    from sa3lora.adapters.effective import terms_of

    pairs = [(make_adapter(seed=n, sites=[site]), s) for n, s in enumerate(strengths)]
    return terms_of(site, pairs)


SITE = "model.transformer.layers.2.self_attn.to_qkv"


def test_ties_keeps_the_large_numbers_of_the_elected_sign(weights, make_adapter):
    acting = terms(make_adapter, SITE, (1.0, -0.6, 0.5))
    found = merged_change(weights(SITE), acting, Method("ties", density=0.25))
    trimmed = []
    for term in acting:
        change = term.strength * term.delta(weights(SITE))
        limit = change.abs().flatten().sort(descending=True).values[change.numel() // 4 - 1]
        trimmed.append(torch.where(change.abs() >= limit, change, 0.0))
    stacked = torch.stack(trimmed)
    agrees = (stacked.sign() == stacked.sum(dim=0).sign()) & (stacked != 0)
    expected = (stacked * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)
    torch.testing.assert_close(found, expected)


def test_dare_drops_by_chance_and_keeps_the_mean(weights, make_adapter):
    acting = terms(make_adapter, SITE, (1.0, 0.7))
    whole = merged_change(weights(SITE), acting, Method())
    assert torch.equal(merged_change(weights(SITE), acting, Method("dare", 1.0)), whole)
    seeds = [merged_change(weights(SITE), acting, Method("dare", 0.5, seed)) for seed in range(400)]
    assert torch.equal(seeds[0], merged_change(weights(SITE), acting, Method("dare", 0.5, 0)))
    assert not torch.equal(seeds[0], seeds[1])
    mean = torch.stack(seeds).mean(dim=0)
    assert float((mean - whole).norm() / whole.norm()) < 0.1


def test_one_change_alone_is_itself_by_every_method(weights, make_adapter):
    acting = terms(make_adapter, SITE, (0.8,))
    whole = merged_change(weights(SITE), acting, Method())
    for method in (Method("ties", 1.0), Method("dare", 1.0)):
        torch.testing.assert_close(merged_change(weights(SITE), acting, method), whole)
