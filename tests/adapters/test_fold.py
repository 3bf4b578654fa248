import itertools

import pytest
import torch

from sa3lora.adapters.config import ADAPTER_TYPES
from sa3lora.adapters.deltas import delta
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.fold import AdapterStack
from sa3lora.adapters.sites import find_layers
from sa3lora.errors import AdapterError, AdapterMismatchError

DTYPES = [torch.float32, torch.float16]
SITE = "model.transformer.project_in"


@pytest.mark.parametrize("adapter_type", ADAPTER_TYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_strength_gives_back_the_base(root, make_adapter, adapter_type, dtype):
    root.to(dtype)
    before = {name: tensor.clone() for name, tensor in root.state_dict().items()}
    stack = AdapterStack(root)
    stack.add(make_adapter(adapter_type), "a", strength=0.7)
    assert not torch.equal(root.state_dict()[f"{SITE}.weight"], before[f"{SITE}.weight"])
    stack.set_strengths({"a": 0.0})
    assert all(torch.equal(tensor, before[name]) for name, tensor in root.state_dict().items())


def test_removing_gives_back_the_base(root, make_adapter, run):
    before = run(root)
    stack = AdapterStack(root, keep_on="cpu")
    stack.add(make_adapter(), "a")
    stack.add(make_adapter(seed=1), "b", strength=-0.3)
    stack.remove("a")
    assert stack.names == ["b"]
    stack.remove("b")
    assert torch.equal(run(root), before)
    stack.add(make_adapter(), "a")
    stack.clear()
    assert stack.names == []
    assert torch.equal(run(root), before)


@pytest.mark.parametrize("adapter_type", ADAPTER_TYPES)
def test_strength_multiplies_the_change(root, make_adapter, adapter_type):
    adapter = make_adapter(adapter_type, alpha=5.0)
    layer = find_layers(root)[SITE]
    base = layer.weight.detach().clone()
    change = delta(base, adapter.tensors[SITE], adapter_type=adapter_type, scale=5.0 / 3)
    stack = AdapterStack(root)
    stack.add(adapter, "a", strength=0.0)
    for strength in (1.0, 0.25, -2.0):
        stack.set_strengths({"a": strength})
        assert torch.equal(layer.weight, base + strength * change)


def test_order_of_a_stack_moves_no_bit(root, make_adapter):
    adapters = {
        "a": make_adapter("lora"),
        "b": make_adapter("dora-rows", seed=1),
        "c": make_adapter("bora-xs", seed=2),
        "a again": make_adapter("lora"),
    }
    strengths = {"a": 0.3, "b": 0.7, "c": -0.4, "a again": 0.9}
    results = []
    for order in itertools.islice(itertools.permutations(adapters), 0, None, 5):
        stack = AdapterStack(root)
        for name in order:
            stack.add(adapters[name], name, strength=strengths[name])
        results.append({key: tensor.clone() for key, tensor in root.state_dict().items()})
        stack.clear()
    first = results[0]
    assert all(torch.equal(first[key], other[key]) for other in results for key in first)


def test_a_stack_is_rounded_once(root, make_adapter):
    root.half()
    layer = find_layers(root)[SITE]
    base = layer.weight.detach().float()
    adapters = [make_adapter(seed=seed) for seed in range(3)]
    stack = AdapterStack(root)
    for number, adapter in enumerate(adapters):
        stack.add(adapter, str(number), strength=0.01)
    ordered = sorted(adapters, key=lambda adapter: adapter.content_hash)
    change = torch.zeros_like(base)
    for adapter in ordered:
        change += 0.01 * delta(base, adapter.tensors[SITE], adapter_type="lora", scale=1.0)
    assert torch.equal(layer.weight, (base + change).half())


def test_a_taken_name_is_refused(root, make_adapter):
    stack = AdapterStack(root)
    stack.add(make_adapter(), "vinyl")
    with pytest.raises(AdapterError, match="named 'vinyl' is loaded already"):
        stack.add(make_adapter(seed=1), "vinyl")


def test_an_unknown_name_is_refused_with_the_loaded_ones(root, make_adapter):
    stack = AdapterStack(root)
    stack.add(make_adapter(), "vinyl")
    with pytest.raises(AdapterError, match="no adapter named 'tape'; loaded: vinyl"):
        stack.set_strengths({"tape": 1.0})
    with pytest.raises(AdapterError, match="no adapter named 'tape'"):
        stack.remove("tape")


def test_layers_that_do_not_fit_are_named_and_nothing_changes(root, make_adapter, run):
    before = run(root)
    good = make_adapter()
    tensors = {site: dict(group) for site, group in good.tensors.items()}
    tensors["model.other"] = tensors[SITE]
    tensors[SITE] = {"lora_A": torch.ones(3, 5), "lora_B": tensors[SITE]["lora_B"]}
    stack = AdapterStack(root)
    with pytest.raises(
        AdapterMismatchError, match=r"model.other: no such layer\s+.*project_in.lora_A"
    ):
        stack.add(AdapterFile(good.config, tensors), "bad")
    assert stack.names == []
    assert torch.equal(run(root), before)


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_not_finite_is_refused(root, make_adapter, strength):
    stack = AdapterStack(root)
    with pytest.raises(AdapterError, match="strength of 'a' must be finite"):
        stack.add(make_adapter(), "a", strength=strength)
    assert stack.names == []


def test_an_overflow_leaves_everything_as_it_was(root, make_adapter, run):
    root.half()
    stack = AdapterStack(root)
    stack.add(make_adapter(), "a", strength=0.5)
    before = run(root)
    with pytest.raises(AdapterError, match=r"overflow torch\.float16 in"):
        stack.set_strengths({"a": 1e9})
    assert stack.strengths == {"a": 0.5}
    assert torch.equal(run(root), before)


@pytest.mark.parametrize("adapter_type", ["lora", "lora-xs"])
def test_beside_bfloat16_weights_the_change_keeps_its_precision(root, make_adapter, adapter_type):
    site = SITE
    adapter = make_adapter(adapter_type, sites=[site])
    layer = find_layers(root.bfloat16())[site]
    weight = layer.weight.detach().clone()
    x = torch.randn(4, weight.shape[1])
    change = delta(weight, adapter.tensors[site], adapter_type=adapter_type, scale=1.0)
    base = layer(x.bfloat16())
    stack = AdapterStack(root)
    stack.add(adapter, "a", strength=0.5)
    assert torch.equal(layer.weight, weight)
    expected = base.float() + 0.5 * x.bfloat16().float() @ change.T
    torch.testing.assert_close(layer(x.bfloat16()), expected.bfloat16())
    stack.set_strengths({"a": 0.0})
    assert torch.equal(layer(x.bfloat16()), base)


def test_a_convolution_in_bfloat16_takes_its_change_beside_it(root, make_adapter):
    site = "model.preprocess_conv"
    adapter = make_adapter(sites=[site])
    layer = find_layers(root.bfloat16())[site]
    x = torch.randn(2, 6, 9).bfloat16()
    base = layer(x)
    AdapterStack(root).add(adapter, "a")
    change = delta(layer.weight, adapter.tensors[site], adapter_type="lora", scale=1.0)
    expected = base.float() + torch.nn.functional.conv1d(x.float(), change)
    torch.testing.assert_close(layer(x), expected.bfloat16())


def test_magnitudes_are_refused_beside_bfloat16_weights(root, make_adapter):
    stack = AdapterStack(root.bfloat16())
    with pytest.raises(AdapterError, match=r"'a' is dora-rows: .* torch.bfloat16 would round away"):
        stack.add(make_adapter("dora-rows"), "a")
    assert stack.names == []


def test_casting_a_model_with_folded_adapters_is_noticed(root, make_adapter):
    stack = AdapterStack(root)
    stack.add(make_adapter(), "a")
    root.half()
    with pytest.raises(AdapterError, match=r"cast to torch\.float16 while adapters were folded"):
        stack.set_strengths({"a": 0.5})
