"""Files with the keys of other tools: what their layers are, and how strong they act."""

import logging

import pytest
import torch
from safetensors.torch import save_file

from sa3lora.adapters.files import read_adapter, validate_adapter
from sa3lora.adapters.names import from_diffusers, site_of, to_diffusers
from sa3lora.errors import AdapterError
from sa3lora.models.source import resolve_model

QKV = "model.transformer.layers.0.self_attn.to_qkv"
SECONDS = "conditioners.seconds_total.embedder.embedding.1"
DOWN, UP = torch.randn(2, 8), torch.randn(24, 2)


def kohya(layer, **others):
    return {f"{layer}.lora_down.weight": DOWN, f"{layer}.lora_up.weight": UP} | {
        f"{layer}.{name}": value for name, value in others.items()
    }


@pytest.mark.parametrize("case", ["small", "medium"])
def test_every_layer_of_a_model_has_its_names_elsewhere(small_model, case):
    from sa3lora.adapters.sites import site_shapes

    sites = list(site_shapes(resolve_model(str(small_model.parent / case)).load_denoiser()))
    assert len(sites) == 31
    for site in sites:
        assert site_of(site) == site
        assert site_of(site.replace(".", "_")) == site
        assert site_of(site.removeprefix("model.")) == site
        assert from_diffusers(*to_diffusers(site)) == site


@pytest.mark.parametrize(
    "layer",
    [
        "lora_unet_transformer_layers_0_self_attn_to_qkv",
        "lora_unet_model_transformer_layers_0_self_attn_to_qkv",
        "diffusion_model.transformer.layers.0.self_attn.to_qkv",
        "diffusion_model.model.transformer.layers.0.self_attn.to_qkv",
        "model.diffusion_model.transformer.layers.0.self_attn.to_qkv",
        "base_model.model.model.transformer.layers.0.self_attn.to_qkv",
    ],
)
def test_prefixes_of_other_tools_lead_to_our_site(tmp_path, layer):
    save_file(kohya(layer, alpha=torch.tensor(1.0)), tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert adapter.sites == [QKV]
    assert (adapter.config.type, adapter.rank(QKV), adapter.scale(QKV)) == ("lora", 2, 0.5)
    assert torch.equal(adapter.tensors[QKV]["lora_A"], DOWN)
    assert torch.equal(adapter.tensors[QKV]["lora_B"], UP)


def test_dotted_lora_a_and_b_are_read(tmp_path):
    layer = "diffusion_model.transformer.layers.0.self_attn.to_qkv"
    save_file(
        {f"{layer}.lora_A.weight": DOWN, f"{layer}.lora_B.weight": UP}, tmp_path / "a.safetensors"
    )
    assert read_adapter(tmp_path / "a.safetensors").scale(QKV) == 1.0


def test_a_missing_alpha_is_said(tmp_path, caplog):
    save_file(kohya("lora_unet_" + QKV.replace(".", "_")), tmp_path / "a.safetensors")
    with caplog.at_level(logging.INFO, logger="sa3lora"):
        read_adapter(tmp_path / "a.safetensors")
    assert "1 layers have no alpha, so their scale is 1" in caplog.text


def test_layers_that_differ_in_alpha_keep_their_scale(tmp_path):
    tensors = kohya("lora_unet_" + QKV.replace(".", "_"), alpha=torch.tensor(1.0))
    tensors |= {
        f"lora_unet_{SECONDS.replace('.', '_')}.{name}": value
        for name, value in {
            "lora_down.weight": DOWN.clone(), "lora_up.weight": UP.clone(),
            "alpha": torch.tensor(3.0),
        }.items()
    }  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    for site, scale in ((QKV, 0.5), (SECONDS, 1.5)):
        change = (
            adapter.scale(site) * adapter.tensors[site]["lora_B"] @ adapter.tensors[site]["lora_A"]
        )
        torch.testing.assert_close(change, scale * UP @ DOWN)


@pytest.mark.parametrize(("shape", "adapter_type"), [((24, 1), "dora-rows"), ((1, 8), "dora-cols")])
def test_the_axis_of_a_magnitude_follows_from_its_shape(tmp_path, shape, adapter_type):
    layer = "lora_unet_" + QKV.replace(".", "_")
    save_file(kohya(layer, dora_scale=torch.rand(shape)), tmp_path / "a.safetensors")
    assert read_adapter(tmp_path / "a.safetensors").config.type == adapter_type


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (kohya("lora_unet_mid_block_attn"), "lora_unet_mid_block_attn.lora_down.weight: not a"),
        (kohya("lora_te1_text_model"), "lora_te1_text_model.lora_up.weight: not a tensor of"),
        (kohya("lora_unet_preprocess_conv", alpha=torch.ones(2)), "must be one finite number"),
        ({"lora_unet_preprocess_conv.lora_down.weight": DOWN}, "lora_B: missing"),
    ],
)
def test_what_is_no_sa3_adapter_is_named(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=message):
        read_adapter(tmp_path / "a.safetensors")
    assert message in " ".join(validate_adapter(tmp_path / "a.safetensors"))
