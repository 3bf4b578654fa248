"""LoKr through PEFT: injected, saved as a PEFT folder, read by PEFT and by us."""

import copy
import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.files import read_adapter, validate_adapter, write_adapter
from sa3lora.adapters.fold import AdapterStack
from sa3lora.adapters.inject import (
    adapter_parameters,
    eject_adapter,
    export_adapter,
    export_file,
    import_adapter_state,
    inject_adapter,
)
from sa3lora.adapters.lokr import lokr_sizes
from sa3lora.adapters.lokr_folder import write_lokr_folder
from sa3lora.adapters.resize import Resizer
from sa3lora.adapters.sites import site_shapes
from sa3lora.errors import AdapterError

CONFIG = AdapterConfig("lokr", r=2, lora_alpha=3.0)
_INPUTS = torch.Generator().manual_seed(1)
X, COND = torch.randn(2, 6, 9, generator=_INPUTS), torch.randn(2, 4, generator=_INPUTS)


@pytest.fixture
def make_root(root):
    return lambda: copy.deepcopy(root)


@pytest.fixture
def trained(make_root):
    """A model with a LoKr that does something on every layer, and the model without."""
    root = make_root()
    inject_adapter(root, CONFIG, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for _, parameter in adapter_parameters(root):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return root


@pytest.fixture
def folder(trained, tmp_path):
    return write_lokr_folder(tmp_path / "adapter", export_file(trained, CONFIG))


def test_a_fresh_one_changes_nothing_and_depends_on_its_seed_alone(make_root):
    root = make_root()
    before = root(X, COND)
    state = torch.get_rng_state()
    sites = inject_adapter(root, CONFIG, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(root(X, COND), before)
    trainable = {name for name, p in root.named_parameters() if p.requires_grad}
    assert len(trainable) == len(adapter_parameters(root))
    assert all("lokr_" in name for name in trainable)
    shapes = {site: site_shapes(root)[site] for site in sites}
    assert {n: p.numel() for n, p in adapter_parameters(root)} == lokr_sizes(CONFIG, shapes)
    for seed, same in ((3, True), (5, False)):
        torch.rand(1)
        other = make_root()
        inject_adapter(other, CONFIG, seed=seed)
        pairs = zip(adapter_parameters(root), adapter_parameters(other), strict=True)
        assert all(torch.equal(one, two) for (_, one), (_, two) in pairs) is same


def test_plain_peft_and_our_fold_play_what_was_trained(trained, folder, make_root):
    expected = trained(X, COND)
    model = PeftModel.from_pretrained(make_root(), folder).eval()
    torch.testing.assert_close(model(X, COND), expected, rtol=1e-4, atol=1e-4)

    root = make_root()
    before = root(X, COND)
    stack = AdapterStack(root)
    stack.add(read_adapter(folder), "a")
    assert not torch.allclose(before, expected, atol=1e-3)
    torch.testing.assert_close(root(X, COND), expected, rtol=1e-4, atol=1e-4)
    stack.set_strengths({"a": 0.0})
    assert torch.equal(root(X, COND), before)


def test_it_runs_beside_weights_too_coarse_to_fold_into(trained, folder, make_root):
    eject_adapter(trained)
    exact, coarse = make_root(), make_root()
    with torch.no_grad():
        for one, two in zip(exact.parameters(), coarse.parameters(), strict=True):
            one.copy_(one.bfloat16())
            two.copy_(one)
    AdapterStack(exact).add(read_adapter(folder), "a")
    AdapterStack(coarse.bfloat16()).add(read_adapter(folder), "a")
    found, expected = coarse(X.bfloat16(), COND.bfloat16()).float(), exact(X, COND)
    # twelve layers that each round to 8 bits
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_a_folder_gives_the_very_same_adapter_back(trained, folder, make_root):
    adapter = read_adapter(folder)
    assert validate_adapter(folder, check_values=True) == []
    assert (adapter.config.type, adapter.config.r, adapter.config.alpha) == ("lokr", 2, 3.0)
    again = make_root()
    inject_adapter(again, CONFIG)
    import_adapter_state(again, adapter.tensors)
    for site, group in export_adapter(trained).items():
        for name, tensor in group.items():
            assert torch.equal(export_adapter(again)[site][name], tensor)


def test_a_state_that_does_not_fit_changes_nothing(trained, make_root):
    state = export_adapter(trained)
    site = next(iter(state))
    state[site]["lokr_w1"] = torch.zeros(1, 1)
    again = make_root()
    inject_adapter(again, CONFIG, seed=1)
    before = export_adapter(again)
    with pytest.raises(AdapterError, match=rf"{site}\.lokr_w1: must be \(.*\), got \(1, 1\)"):
        import_adapter_state(again, state)
    assert torch.equal(export_adapter(again)[site]["lokr_w1"], before[site]["lokr_w1"])


def test_it_is_no_single_file_and_the_refusal_says_what_to_do(folder, tmp_path):
    with pytest.raises(AdapterError, match=r"lokr has no form as a single file.*sa3lora resize"):
        write_adapter(tmp_path / "a.safetensors", read_adapter(folder))
    assert not (tmp_path / "a.safetensors").exists()


def test_resize_makes_a_lora_of_it(trained, folder, make_root, tmp_path):
    adapter = read_adapter(folder)
    resizer = Resizer(adapter, None)
    whole = resizer.to_rank(resizer.max_rank)
    assert whole.adapter.config.type == "lora"
    assert whole.kept == pytest.approx(1.0, abs=1e-6)
    write_adapter(tmp_path / "a.safetensors", whole.adapter)
    root = make_root()
    AdapterStack(root).add(read_adapter(tmp_path / "a.safetensors"), "a")
    torch.testing.assert_close(root(X, COND), trained(X, COND), rtol=1e-4, atol=1e-4)


def test_no_other_adapter_goes_beside_it(make_root):
    root = make_root()
    inject_adapter(root, AdapterConfig("lora", r=2))
    with pytest.raises(AdapterError, match="lokr cannot be injected beside another adapter"):
        inject_adapter(root, CONFIG, adapter_name="second")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t: s.update(r=0), "r must be a positive integer, got 0"),
        (lambda s, t: s.update(alpha="x"), "alpha must be a finite number, got x"),
        (lambda s, t: s.update(rank_pattern={"a": 3}), "rank_pattern .* has no place"),
        (lambda s, t: t.clear(), "holds no tensors"),
        (lambda s, t: t.update(nonsense=torch.zeros(1)), "nonsense: not a tensor of a LoKr"),
        (lambda s, t: t.pop(min(t)), "make no Kronecker product"),
        (lambda s, t: t[min(t)].fill_(float("nan")), "values that are not finite"),
        (lambda s, t: t.update({min(t): t[min(t)].int()}), "must be floating point, got I32"),
    ],
)
def test_a_broken_folder_is_refused_by_name(folder, change, message):
    settings = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    change(settings, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=message):
        read_adapter(folder)
    assert len(validate_adapter(folder)) == 1


def test_a_lokr_of_another_model_does_not_fit(folder, make_root):
    root = make_root()
    root.model.transformer.project_in = torch.nn.Linear(6, 18, bias=False)
    with pytest.raises(
        AdapterError, match=r"project_in: is for \(16, 6\), the model has \(18, 6\)"
    ):
        AdapterStack(root).add(read_adapter(folder), "a")
