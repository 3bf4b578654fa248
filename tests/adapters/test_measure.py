import torch

from sa3lora.adapters.deltas import delta
from sa3lora.adapters.measure import kind_of, measure_change
from sa3lora.adapters.sites import find_layers


def test_norms_of_a_kind_cover_all_its_layers(root, make_adapter):
    adapter = make_adapter(alpha=5.0)
    weights = {site: layer.weight for site, layer in find_layers(root).items()}
    sites = [site for site in adapter.sites if site.endswith("self_attn.to_out")]
    changes = torch.stack(
        [delta(weights[s], adapter.tensors[s], adapter_type="lora", scale=5.0 / 3) for s in sites]
    )
    base = torch.stack([weights[site] for site in sites])
    measured = {change.kind: change for change in measure_change(adapter, weights)}
    found = measured["self_attn.to_out"]
    assert found.num_sites == 12
    torch.testing.assert_close(found.norm, float(changes.norm()), rtol=1e-5, atol=0)
    expected = float(changes.norm() / base.norm())
    torch.testing.assert_close(found.relative, expected, rtol=1e-5, atol=0)


def test_plain_lora_is_measured_without_its_base(root, make_adapter):
    adapter = make_adapter(alpha=5.0)
    weights = {site: layer.weight for site, layer in find_layers(root).items()}
    for alone, beside in zip(
        measure_change(adapter), measure_change(adapter, weights), strict=True
    ):
        torch.testing.assert_close(alone.norm, beside.norm, rtol=1e-5, atol=0)
        assert alone.relative is None


def test_magnitudes_need_the_base_to_be_measured(make_adapter):
    assert {change.norm for change in measure_change(make_adapter("dora-rows"))} == {None}


def test_layers_of_all_blocks_are_one_kind():
    assert kind_of("model.transformer.layers.11.self_attn.to_qkv") == "self_attn.to_qkv"
    assert kind_of("model.to_cond_embed.0") == "to_cond_embed.0"
