import pytest
import torch

from sa3lora.adapters.fold import AdapterStack, Setting
from sa3lora.adapters.sites import find_layers
from sa3lora.errors import AdapterError

INSIDE, CONDITIONER = "model.transformer.project_in", "conditioners.seconds_total"


@pytest.fixture
def weights(root):
    layers = find_layers(root)
    return lambda: {site: layer.weight.detach().clone() for site, layer in layers.items()}


def changed(before, after):
    return {site for site in before if not torch.equal(before[site], after[site])}


def test_conditioners_may_have_their_own_strength(root, weights, make_adapter):
    base, stack = weights(), AdapterStack(root)
    stack.add(make_adapter(), "a", setting=Setting(0.0, conditioner_strength=0.5))
    assert changed(base, weights()) == {CONDITIONER}
    half = weights()[CONDITIONER] - base[CONDITIONER]
    stack.configure({"a": Setting(0.5, conditioner_strength=0.0)})
    assert changed(base, weights()) == set(base) - {CONDITIONER}
    stack.set_strengths({"a": 0.5})
    torch.testing.assert_close(weights()[CONDITIONER] - base[CONDITIONER], half)
    assert changed(base, weights()) == set(base)


def test_skipped_layers_are_the_base(root, weights, make_adapter):
    base, stack = weights(), AdapterStack(root)
    stack.add(make_adapter(), "a", setting=Setting(skip_layers=("layers.[0-9].", "seconds")))
    left = {site for site in base if "layers.1" in site and "layers.1." not in site}
    assert changed(base, weights()) == left | {
        INSIDE,
        "model.preprocess_conv",
        "model.transformer.project_out",
    }


def test_an_interval_limits_the_transformer_and_writes_at_its_borders_only(
    root, weights, make_adapter, monkeypatch
):
    base, stack = weights(), AdapterStack(root)
    stack.add(make_adapter(), "late", setting=Setting(0.7, interval=(0.0, 0.5)))
    stack.add(make_adapter("bora", seed=1), "always", strength=0.3)
    assert stack.has_intervals
    both = weights()
    written = []
    write = stack._writer.write
    monkeypatch.setattr(
        stack._writer, "write", lambda site, terms: (written.append(site), write(site, terms))
    )
    stack.at_noise_level(1.0)
    assert len(written) == len(base) - 1
    assert torch.equal(weights()[CONDITIONER], both[CONDITIONER])
    stack.at_noise_level(0.51)
    assert len(written) == len(base) - 1
    stack.at_noise_level(0.5)  # both ends belong to it
    assert changed(both, weights()) == set()
    stack.at_noise_level(0.9)
    stack.at_noise_level(None)
    assert changed(both, weights()) == set()


def test_resting_adapters_keep_their_settings(root, weights, make_adapter):
    base, stack = weights(), AdapterStack(root)
    stack.add(make_adapter("dora-cols"), "a", strength=0.4)
    acting = weights()
    stack.set_enabled(False)
    assert changed(base, weights()) == set()
    stack.set_enabled(True)
    assert stack.strengths == {"a": 0.4}
    assert changed(acting, weights()) == set()


def test_a_swapped_adapter_takes_over_the_setting(root, weights, make_adapter):
    stack = AdapterStack(root)
    setting = Setting(0.5, conditioner_strength=0.0)
    stack.add(make_adapter(seed=5), "a", setting=setting)
    wanted = weights()
    stack.clear()
    stack.add(make_adapter("bora"), "a", setting=setting)
    stack.swap("a", make_adapter(seed=5))
    assert changed(wanted, weights()) == set()
    assert stack.setting("a") == setting
    with pytest.raises(AdapterError, match="no adapter named 'b'"):
        stack.swap("b", make_adapter())


def test_the_official_rule_keeps_magnitudes_and_order(root, weights, make_adapter):
    base = weights()[INSIDE]
    adapter = make_adapter("dora-rows")
    stack = AdapterStack(root, strength_rule="official")
    stack.add(adapter, "a", strength=1e-3)
    norms = weights()[INSIDE].norm(dim=1)
    torch.testing.assert_close(norms, adapter.tensors[INSIDE]["magnitude"])
    stack.set_strengths({"a": 0.0})
    assert torch.equal(weights()[INSIDE], base)
    stack.set_strengths({"a": 1.0})
    stack.add(make_adapter(seed=1), "b")
    one = weights()
    stack.remove("a")
    stack.add(adapter, "a")
    assert INSIDE in changed(one, weights())
    with pytest.raises(AdapterError, match="strength_rule must be exact or official, got 'other'"):
        AdapterStack(root, strength_rule="other")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting(float("nan")), "strength of 'a' must be finite, got nan"),
        (Setting(conditioner_strength=float("inf")), "strength of 'a' must be finite, got inf"),
        (Setting(interval=(0.6, 0.5)), r"0 <= LO <= HI <= 1, got 0.6:0.5"),
        (Setting(interval=(0.0, 1.5)), r"got 0:1.5"),
        (Setting(skip_layers=("nowhere",)), "'nowhere' matches none of its 28 layers"),
        (Setting(skip_layers=("layers.0.", " ")), "' ' matches none"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(root, make_adapter, setting, message):
    stack = AdapterStack(root)
    with pytest.raises(AdapterError, match=message):
        stack.add(make_adapter(), "a", setting=setting)
    assert stack.names == []


def test_an_overflow_on_adding_gives_back_the_base(root, weights, make_adapter):
    root.half()
    base, stack = weights(), AdapterStack(root)
    with pytest.raises(AdapterError, match="overflow"):
        stack.add(make_adapter(), "a", strength=1e9)
    assert stack.names == []
    assert changed(base, weights()) == set()
