from __future__ import annotations

import math

import pytest

from sa3lora.errors import ModelError
from sa3lora.models.checkpoint import Inventory, expected_inventory
from sa3lora.models.config_parse import parse_config
from sa3lora.models.fixtures import released_config, text_config
from sa3lora.models.registry import MODELS

RELEASED = [name for name in MODELS if name != "tiny"]


def inventory(name: str) -> Inventory:
    return expected_inventory(parse_config(released_config(name)))


def elements(found: Inventory, prefix: str = "") -> int:
    return sum(math.prod(shape) for key, shape in found.items() if key.startswith(prefix))


# model specification, section 2.5
@pytest.mark.parametrize(
    ("name", "tensors", "numbers"),
    [
        ("small-music", 685, 567_573_761),
        ("medium", 997, 2_305_495_793),
        ("same-s", 244, 108_244_721),
        ("same-l", 472, 852_127_457),
    ],
)
def test_the_published_inventories(name: str, tensors: int, numbers: int) -> None:
    found = inventory(name)
    assert len(found) == tensors
    assert elements(found) == numbers


@pytest.mark.parametrize(
    ("name", "dit", "local", "encoder", "decoder"),
    [
        ("small-sfx-base", (438, 459_130_896), 432_855_040, 53_728_888, 54_515_320),
        ("medium-base", (522, 1_453_170_192), 1_386_999_296, 426_063_856, 426_063_088),
    ],
)
def test_the_published_counts_of_each_part(
    name: str, dit: tuple[int, int], local: int, encoder: int, decoder: int
) -> None:
    found = inventory(name)
    transformer = {key: s for key, s in found.items() if key.startswith("model.model.")}
    assert (len(transformer), elements(transformer)) == dit
    # the advertised sizes, 433M and 1.4B, leave out the local conditioning and the 16 speeds
    advertised = {k: s for k, s in transformer.items() if ".to_local_embed." not in k}
    assert elements(advertised) - 16 == local
    conditioner = {key: s for key, s in found.items() if key.startswith("conditioner.")}
    assert (len(conditioner), elements(conditioner)) == (3, 198_144)
    assert elements(found, "pretransform.model.encoder.") == encoder
    assert elements(found, "pretransform.model.decoder.") == decoder
    assert elements(found, "pretransform.model.bottleneck.") == 513


# model specification, sections 2.1 to 2.3
@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("small-music", "model.model.to_timestep_embed.0.weight", (1024, 256)),
        ("small-music", "model.model.to_cond_embed.0.weight", (1024, 768)),
        ("small-music", "model.model.preprocess_conv.weight", (256, 256, 1)),
        ("small-music", "model.model.transformer.memory_tokens", (64, 1024)),
        ("small-music", "model.model.transformer.rotary_pos_emb.inv_freq", (16,)),
        ("small-music", "model.model.transformer.layers.19.to_scale_shift_gate", (6144,)),
        ("small-music", "model.model.transformer.layers.0.self_attn.to_qkv.weight", (3072, 1024)),
        ("small-music", "model.model.transformer.layers.0.cross_attn.to_q.weight", (1024, 1024)),
        ("small-music", "model.model.transformer.layers.0.cross_attn.to_kv.weight", (2048, 1024)),
        ("small-music", "model.model.transformer.layers.0.ff.ff.0.proj.weight", (8192, 1024)),
        ("small-music", "model.model.transformer.layers.0.to_local_embed.0.weight", (1024, 257)),
        ("medium", "model.model.transformer.layers.23.self_attn.to_qkv.weight", (7680, 1536)),
        ("medium", "model.model.transformer.layers.23.cross_attn.to_q.weight", (3072, 1536)),
        ("medium", "model.model.transformer.layers.23.cross_attn.to_kv.weight", (4608, 1536)),
        ("medium", "model.model.transformer.layers.0.self_attn.q_norm.gamma", (64,)),
        ("medium", "conditioner.conditioners.prompt.padding_embedding", (768,)),
        (
            "medium",
            "conditioner.conditioners.seconds_total.embedder.embedding.1.weight",
            (768, 256),
        ),
        ("small-music", "pretransform.model.bottleneck.noise_scaling_factor", (1, 0, 1)),
        ("small-music", "pretransform.model.bottleneck.running_std", (1,)),
        ("same-s", "encoder.layers.0.mapping.weight_v", (768, 512, 1)),
        ("same-s", "decoder.layers.3.mapping.weight_v", (512, 768, 3)),
        ("same-s", "decoder.layers.3.mapping.weight_g", (512, 1, 1)),
        ("same-s", "encoder.layers.0.new_tokens", (1, 1, 768)),
        ("same-s", "encoder.layers.2.weight", (256, 768)),
        ("same-s", "decoder.layers.1.weight", (768, 256)),
        ("same-s", "encoder.layers.0.transformers.5.rope.inv_freq", (16,)),
        ("same-s", "encoder.layers.0.transformers.0.pre_norm.alpha", (1,)),
        ("same-s", "encoder.layers.0.transformers.0.self_attn.to_qkv.weight", (3840, 768)),
        ("same-s", "encoder.layers.0.transformers.0.ff.ff.0.proj.weight", (4608, 768)),
        ("same-l", "decoder.layers.3.mapping.weight_v", (512, 1536, 1)),
        ("same-l", "decoder.layers.3.transformers.11.self_attn.k_norm.beta", (64,)),
    ],
)
def test_published_shapes(name: str, key: str, shape: tuple[int, ...]) -> None:
    assert inventory(name)[key] == shape


def test_absent_keys_are_absent() -> None:
    found = inventory("small-music")
    assert not [key for key in found if "proj_out" in key or key.endswith("rotary_pos_emb.scale")]
    assert not [key for key in found if "self_attn" in key and key.endswith("bias")
                and key.startswith("model.")]  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_base_models_differ_by_objective_and_length_alone(name: str) -> None:
    config = parse_config(released_config(name))
    if name.startswith("same"):
        assert config.dit is None
        return
    assert config.objective == ("rectified_flow" if name.endswith("-base") else "rf_denoiser")
    samples = {"small-base": 5324800, "small": 5292032}
    kind = "small-base" if name.endswith("-base") else "small"
    assert config.sample_size == (16777216 if "medium" in name else samples[kind])
    assert config.prompt is not None
    assert config.prompt.repo_id == "stabilityai/stable-audio-3-" + name.removesuffix("-base")


def test_each_call_gives_a_configuration_of_its_own() -> None:
    first = released_config("medium")
    first["model"]["diffusion"]["config"]["attn_kwargs"]["differential"] = False
    first["model"]["pretransform"]["config"]["encoder"]["config"]["c_mults"][0] = 1
    again = released_config("medium")
    assert again["model"]["diffusion"]["config"]["attn_kwargs"]["differential"] is True
    assert again["model"]["pretransform"]["config"]["encoder"]["config"]["c_mults"] == [6]


def test_the_text_encoder_has_the_published_geometry() -> None:
    config = text_config("medium", vocab_size=1024)
    assert config is not None
    encoder = config["encoder"]
    # model specification, section 4.1
    wanted = {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "head_dim": 64,
        "intermediate_size": 2048, "attn_logit_softcapping": 50.0, "rms_norm_eps": 1e-6,
        "vocab_size": 1024, "query_pre_attn_scalar": 64,
    }  # fmt: skip
    assert {key: encoder[key] for key in wanted} == wanted
    assert text_config("same-l", vocab_size=1024) is None


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"there is no model 'large'\. Known names: tiny,"):
        released_config("large")
