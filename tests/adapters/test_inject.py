import pytest
import torch
from torch import nn

from sa3lora.adapters.config import AdapterConfig
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
from sa3lora.adapters.sites import find_layers, site_shapes
from sa3lora.errors import AdapterError

CONFIG = AdapterConfig(r=3, lora_alpha=6.0)


def train_a_little(root):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in adapter_parameters(root):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_nothing(root, run, dtype):
    root.to(dtype)
    before = run(root)
    sites = inject_adapter(root, CONFIG)
    assert sites == list(find_layers(root))
    assert torch.equal(run(root), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_float32_adapters_are_trained(root, dtype):
    root.to(dtype).requires_grad_(True)
    inject_adapter(root, CONFIG)
    trained = [parameter for parameter in root.parameters() if parameter.requires_grad]
    listed = [parameter for _, parameter in adapter_parameters(root)]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in listed}
    assert {parameter.dtype for parameter in listed} == {torch.float32}


def test_a_step_of_training_changes_only_the_adapter(root):
    before = {name: tensor.clone() for name, tensor in root.state_dict().items()}
    inject_adapter(root, CONFIG)
    x, seconds = torch.randn(2, 6, 9), torch.randn(2, 4)
    optimizer = torch.optim.AdamW([p for _, p in adapter_parameters(root)], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        root(x, seconds).square().mean().backward()
        optimizer.step()
    moved = export_adapter(root)
    assert all(tensors["lora_B"].abs().sum() > 0 for tensors in moved.values())
    eject_adapter(root)
    assert all(torch.equal(tensor, before[name]) for name, tensor in root.state_dict().items())


def test_first_values_follow_from_the_seed_and_the_released_law(root):
    inject_adapter(root, AdapterConfig(r=16), seed=5)
    first = export_adapter(root)
    eject_adapter(root)
    torch.manual_seed(99)
    inject_adapter(root, AdapterConfig(r=16), seed=5)
    again = export_adapter(root)
    assert all(torch.equal(first[s][n], again[s][n]) for s in first for n in first[s])
    for site, (_, fan_in) in site_shapes(root).items():
        values = first[site]["lora_A"] * fan_in**0.5
        assert values.abs().max() <= 1.0
        assert values.abs().max() > 0.8
        assert not first[site]["lora_B"].any()


def test_another_seed_gives_other_values(root):
    inject_adapter(root, CONFIG, seed=5)
    first = export_adapter(root)
    eject_adapter(root)
    inject_adapter(root, CONFIG, seed=6)
    second = export_adapter(root)
    assert not any(torch.equal(first[site]["lora_A"], second[site]["lora_A"]) for site in first)


def test_injection_leaves_global_random_state_alone(root):
    before = torch.get_rng_state()
    inject_adapter(root, CONFIG)
    assert torch.equal(torch.get_rng_state(), before)


def test_ejecting_puts_the_very_layers_back(root, run):
    layers, keys, before = find_layers(root), list(root.state_dict()), run(root)
    inject_adapter(root, CONFIG)
    train_a_little(root)
    eject_adapter(root)
    assert all(layer is root.get_submodule(site) for site, layer in layers.items())
    assert list(root.state_dict()) == keys
    assert torch.equal(run(root), before)
    assert not hasattr(root, "peft_config")


def test_the_folded_export_computes_what_was_trained(root, run, tmp_path):
    inject_adapter(root, CONFIG)
    train_a_little(root)
    trained = run(root)
    write_adapter(tmp_path / "a.safetensors", export_file(root, CONFIG))
    eject_adapter(root)
    AdapterStack(root).add(read_adapter(tmp_path / "a.safetensors"), "a")
    torch.testing.assert_close(run(root), trained)


def test_import_gives_back_the_exported_tensors(root, run):
    inject_adapter(root, CONFIG)
    train_a_little(root)
    state, trained = export_adapter(root), run(root)
    eject_adapter(root)
    inject_adapter(root, CONFIG, seed=1)
    import_adapter_state(root, state)
    again = export_adapter(root)
    assert all(torch.equal(state[s][n], again[s][n]) for s in state for n in state[s])
    assert torch.equal(run(root), trained)


def test_exported_tensors_have_the_shapes_of_files(root):
    inject_adapter(root, CONFIG)
    exported = export_adapter(root)
    for site, (fan_out, fan_in) in site_shapes(root).items():
        shapes = {name: tuple(tensor.shape) for name, tensor in exported[site].items()}
        assert shapes == {"lora_A": (3, fan_in), "lora_B": (fan_out, 3)}


def test_a_state_that_does_not_fit_is_refused_whole(root):
    inject_adapter(root, CONFIG)
    state = export_adapter(root)
    site, other = sorted(state)[:2]
    broken = {s: dict(tensors) for s, tensors in state.items()}
    broken["model.other"] = broken.pop(other)
    broken[site] = {"lora_A": torch.ones(1, 1)}
    with pytest.raises(AdapterError, match=rf"{other}: not in the state\s+model.other: not an inj"):
        import_adapter_state(root, broken)
    again = export_adapter(root)
    assert all(torch.equal(state[s][n], again[s][n]) for s in state for n in state[s])


def test_the_file_of_an_adapter_names_exactly_its_sites(root):
    config = AdapterConfig(r=2, include=("layers.[0-1].",), exclude=("to_out",))
    sites = inject_adapter(root, config)
    file = export_file(root, config, metadata={"sa3lora.step": "5"})
    assert file.sites == sites
    assert (file.config.include, file.config.exclude) == (("layers.[0-1].",), ("to_out",))
    assert file.metadata == {"sa3lora.step": "5"}


def test_dropout_acts_in_training_only(root, run):
    inject_adapter(root, AdapterConfig(r=3, lora_dropout=0.5))
    train_a_little(root)
    assert torch.equal(run(root), run(root))
    root.train()
    assert not torch.equal(run(root), run(root))


def test_an_adapter_trains_on_a_frozen_stack(root, run, make_adapter):
    stack = AdapterStack(root)
    stack.add(make_adapter(), "style", strength=0.5)
    before = run(root)
    inject_adapter(root, CONFIG)
    assert torch.equal(run(root), before)
    AdapterStack(root).add(make_adapter(seed=4), "more")
    assert not torch.equal(run(root), before)


def test_a_taken_name_is_refused(root):
    inject_adapter(root, CONFIG)
    with pytest.raises(AdapterError, match="named 'default' is injected already"):
        inject_adapter(root, CONFIG)


def test_an_adapter_that_is_not_there_is_named(root):
    with pytest.raises(AdapterError, match="no adapter named 'default' is injected"):
        export_adapter(root)


def test_a_grouped_convolution_is_refused_by_name():
    root = nn.ModuleDict({"conv": nn.Conv1d(4, 4, 1, groups=2), "linear": nn.Linear(4, 4)})
    with pytest.raises(AdapterError, match="conv: groups 2, dilation 1"):
        inject_adapter(root, CONFIG)
    assert inject_adapter(root, AdapterConfig(r=2, include=("linear",))) == ["linear"]
