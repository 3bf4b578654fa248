"""Every type through PEFT: what a layer computes while it trains is what its file says."""

import logging

import pytest
import torch
from torch import nn

from sa3lora.adapters.config import ADAPTER_TYPES, AdapterConfig
from sa3lora.adapters.deltas import delta, trained_weight
from sa3lora.adapters.files import read_adapter, write_adapter
from sa3lora.adapters.fold import AdapterStack
from sa3lora.adapters.inject import (
    adapter_parameters,
    eject_adapter,
    export_adapter,
    export_file,
    import_adapter_state,
    inject_adapter,
)
from sa3lora.adapters.sites import find_layers
from sa3lora.errors import AdapterError

PISSA = AdapterConfig(r=3, lora_alpha=6.0, init="pissa")
CONFIGS = [AdapterConfig(type=name, r=3, lora_alpha=6.0) for name in ADAPTER_TYPES] + [PISSA]
every_type = pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: "pissa" if c.init == "pissa" else c.type
)
X, SECONDS = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(1)), torch.ones(2, 4)


def train(root, *, steps=3, lr=0.05):
    optimizer = torch.optim.SGD([p for _, p in adapter_parameters(root)], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (root(X, SECONDS) - 1.0).square().mean().backward()
        optimizer.step()


@every_type
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_of_any_type_changes_no_bit(root, run, config, dtype):
    root.to(dtype)
    before = run(root)
    inject_adapter(root, config)
    assert torch.equal(run(root), before)


@every_type
def test_only_float32_tensors_of_the_adapter_are_trained_and_the_base_stays(root, config):
    before = {name: tensor.clone() for name, tensor in root.state_dict().items()}
    inject_adapter(root, config)
    listed = dict(adapter_parameters(root))
    assert {id(p) for p in root.parameters() if p.requires_grad} == set(map(id, listed.values()))
    assert {parameter.dtype for parameter in listed.values()} == {torch.float32}
    start = {name: p.detach().clone() for name, p in listed.items()}
    train(root)
    assert all(not torch.equal(p, start[name]) for name, p in listed.items())
    eject_adapter(root)
    assert all(torch.equal(tensor, before[name]) for name, tensor in root.state_dict().items())


@every_type
def test_the_folded_file_of_any_type_computes_what_was_trained(root, run, config, tmp_path):
    before = run(root)
    inject_adapter(root, config)
    train(root)
    trained = run(root)
    write_adapter(tmp_path / "a.safetensors", export_file(root, config))
    eject_adapter(root)
    AdapterStack(root).add(read_adapter(tmp_path / "a.safetensors"), "a")
    assert (trained - before).norm() > 1e-2 * before.norm()
    torch.testing.assert_close(run(root), trained, rtol=1e-5, atol=1e-5)


@every_type
def test_a_state_of_any_type_goes_out_and_in_bit_for_bit(root, run, config):
    inject_adapter(root, config)
    train(root)
    state, trained = export_adapter(root), run(root)
    eject_adapter(root)
    inject_adapter(root, config, seed=1)
    import_adapter_state(root, state)
    again = export_adapter(root)
    assert all(torch.equal(state[s][n], again[s][n]) for s in state for n in state[s])
    assert torch.equal(run(root), trained)


@pytest.mark.parametrize("adapter_type", ADAPTER_TYPES)
def test_gradients_are_those_of_the_released_formula(root, adapter_type):
    site = "model.transformer.project_out"
    config = AdapterConfig(type=adapter_type, r=3, lora_alpha=6.0, include=(site,))
    inject_adapter(root, config)
    train(root)
    layer = root.get_submodule(site)
    x = torch.randn(2, 5, 16)
    tensors = {
        name: value.clone().requires_grad_() for name, value in export_adapter(root)[site].items()
    }
    base = find_layers(root)[site]
    weight = trained_weight(base.weight, tensors, adapter_type=adapter_type, scale=2.0)
    expected = nn.functional.linear(x, weight, base.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    names = [name for name, _ in adapter_parameters(root)]
    ours = torch.autograd.grad(layer(x).sin().sum(), [p for _, p in adapter_parameters(root)])
    wanted = [tensors[name.rpartition(".")[2]] for name in names]
    theirs = torch.autograd.grad(expected.sin().sum(), wanted)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-5)


@every_type
def test_dropout_of_any_type_acts_in_training_only(root, run, config):
    inject_adapter(root, AdapterConfig(**{**vars(config), "lora_dropout": 0.5}))
    train(root)
    assert torch.equal(run(root), run(root))
    root.train()
    assert not torch.equal(run(root), run(root))


def test_bases_stay_frozen_when_adapters_are_switched_off_and_on(root):
    inject_adapter(root, AdapterConfig(type="lora-xs", r=3))
    for on in (False, True):
        for layer in root.modules():
            if hasattr(layer, "enable_adapters"):
                layer.enable_adapters(on)
    trained = [name for name, p in root.named_parameters() if p.requires_grad]
    assert len(trained) == 28
    assert all(name.endswith("M_xs") for name in trained)


@pytest.mark.parametrize("adapter_type", ["dora-rows", "dora-cols", "bora", "bora-xs"])
def test_on_a_frozen_stack_the_base_is_the_untouched_weight(root, run, make_adapter, adapter_type):
    stack = AdapterStack(root)
    style = make_adapter()
    stack.add(style, "style", strength=0.5)
    before = run(root)
    config = AdapterConfig(type=adapter_type, r=3)
    inject_adapter(root, config, bases=stack.bases)
    assert torch.equal(run(root), before)
    train(root)
    trained, file = run(root), export_file(root, config)
    eject_adapter(root)
    stack.add(file, "new")
    torch.testing.assert_close(run(root), trained, rtol=1e-5, atol=1e-5)


def test_two_injected_adapters_add_their_changes(root, run):
    configs = {"one": AdapterConfig(type="bora", r=2), "two": AdapterConfig(type="dora-rows", r=3)}
    files = {}
    for name, config in configs.items():
        inject_adapter(root, config, adapter_name=name, seed=3)
        with torch.no_grad():
            for _, parameter in adapter_parameters(root, adapter_name=name):
                parameter.add_(0.1)
        files[name] = export_file(root, config, adapter_name=name)
    together = run(root)
    eject_adapter(root)
    stack = AdapterStack(root)
    for name, file in files.items():
        stack.add(file, name)
    torch.testing.assert_close(run(root), together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adapter_type", ["dora-rows", "dora-cols", "bora"])
def test_rows_and_columns_of_zeros_are_named_and_train_like_lora(root, run, adapter_type, caplog):
    site = "model.transformer.project_in"
    layer = root.get_submodule(site)
    with torch.no_grad():
        layer.weight[2] = 0.0
        layer.weight[:, 1] = 0.0
    config = AdapterConfig(type=adapter_type, r=3, include=(site,))
    before = run(root)
    with caplog.at_level(logging.WARNING):
        inject_adapter(root, config)
    rows, columns = int(adapter_type != "dora-cols"), int(adapter_type != "dora-rows")
    assert f"{site} ({rows} rows, {columns} columns)" in caplog.text
    assert torch.equal(run(root), before)
    train(root, steps=6)
    trained, file = run(root), export_file(root, config)
    eject_adapter(root)
    change = delta(layer.weight, file.tensors[site], adapter_type=adapter_type, scale=1.0)
    assert change[2].abs().max() > 1e-4
    assert change[:, 1].abs().max() > 1e-4
    AdapterStack(root).add(file, "a")
    torch.testing.assert_close(run(root), trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config", [AdapterConfig(type="lora-xs", r=7), AdapterConfig(r=7, init="pissa")]
)
def test_a_rank_above_the_smaller_side_is_refused_with_the_largest(root, config):
    with pytest.raises(AdapterError, match=r"project_in: 16 x 6[\s\S]*Lower adapter.r to 4"):
        inject_adapter(root, config)


def test_pissa_starts_from_the_leading_part_and_ends_as_plain_lora(root):
    inject_adapter(root, PISSA)
    site = "model.transformer.layers.0.self_attn.to_out"
    weight = find_layers(root)[site].weight.detach()
    start = {name.rpartition(".")[2]: p for name, p in adapter_parameters(root) if site in name}
    left, values, right = torch.linalg.svd(weight)
    leading = left[:, :3] * values[:3] @ right[:3]
    torch.testing.assert_close(2.0 * start["lora_B"] @ start["lora_A"], leading)
    train(root)
    trained = 2.0 * (start["lora_B"] @ start["lora_A"]).detach()
    file = export_file(root, PISSA)
    assert (file.config.type, file.config.r, file.config.alpha) == ("lora", 6, 12.0)
    change = delta(weight, file.tensors[site], adapter_type="lora", scale=file.scale(site))
    torch.testing.assert_close(change, trained - leading, rtol=1e-4, atol=1e-5)


def test_a_wide_convolution_is_refused_for_magnitudes_of_columns():
    root = nn.ModuleDict({"conv": nn.Conv1d(4, 4, 3, padding=1)})
    with pytest.raises(AdapterError, match=r"bora scales inputs[\s\S]*conv: kernel 3"):
        inject_adapter(root, AdapterConfig(type="bora", r=2))


@pytest.mark.parametrize("adapter_type", ["lora", "dora-rows", "lora-xs", "dora-rows-xs"])
def test_a_wide_convolution_trains_what_its_file_says(adapter_type):
    conv = nn.Conv1d(4, 5, 3, padding=1)
    root, x = nn.ModuleDict({"conv": conv}), torch.randn(2, 4, 9)
    config = AdapterConfig(type=adapter_type, r=2)
    inject_adapter(root, config)
    with torch.no_grad():
        for _, parameter in adapter_parameters(root):
            parameter.add_(0.3)
        trained = root["conv"](x)
    file = export_file(root, config)
    eject_adapter(root)
    AdapterStack(root).add(file, "a")
    torch.testing.assert_close(conv(x), trained, rtol=1e-5, atol=1e-5)
