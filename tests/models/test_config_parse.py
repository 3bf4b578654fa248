from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sa3lora.errors import ModelError
from sa3lora.models.config_parse import load_config, parse_config
from sa3lora.models.fixtures import released_config


@pytest.fixture
def raw() -> dict[str, Any]:
    return copy.deepcopy(released_config("small-music-base"))


def at(raw: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    *parents, last = path.split(".")
    for name in parents:
        raw = raw[int(name)] if isinstance(raw, list) else raw[name]
    return raw, last


DIT = "model.diffusion.config"
SAME = "model.pretransform.config"


def test_the_released_options_are_read(raw: dict[str, Any]) -> None:
    config = parse_config(raw)
    assert config.sample_rate == 44100
    assert config.downsampling_ratio == 4096
    assert config.latent_channels == 256
    assert config.max_prompt_tokens == 256
    assert config.seconds_range == (0.0, 384.0)
    assert config.training_shift == {"type": "full", "min_length": 256, "max_length": 4096}
    assert config.sampling_shift is None
    assert config.dit is not None
    assert config.dit.head_dim == 64
    assert not config.is_post_trained
    assert config.raw == raw


def test_limits_of_length() -> None:
    # 1300 latents; 1292 latents; and 380 s, below the 384 of the duration embedding
    assert parse_config(released_config("small-sfx-base")).max_duration_s == 5324800 / 44100
    assert parse_config(released_config("small-music")).max_duration_s == 5292032 / 44100
    assert parse_config(released_config("medium")).max_duration_s == 16777216 / 44100
    assert parse_config(released_config("medium")).is_post_trained


def test_the_duration_embedding_limits_length_too(raw: dict[str, Any]) -> None:
    raw["model"]["conditioning"]["configs"][1]["config"]["max_val"] = 47
    assert parse_config(raw).max_duration_s == 47


def test_an_autoencoder_alone_is_recognised() -> None:
    config = parse_config(released_config("same-l"))
    assert config.dit is None
    assert config.prompt is None
    assert config.same.encoder.window == 1
    assert config.same.encoder.chunk_size is None
    assert config.same.decoder.sine_blocks == 8
    # lengths are rounded to what the official default chunk size of 32 patches gives
    assert config.same.encoder.length_multiple == 2


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (f"{DIT}.patch_size", 2, r"diffusion\.config\.patch_size = 2 is not supported"),
        (f"{DIT}.global_cond_type", "prepend", "global_cond_type must be 'adaLN', got 'prepend'"),
        (f"{DIT}.norm_type", "layer_norm", "norm_type must be 'rms_norm'"),
        (f"{DIT}.timestep_features_type", "learned", "must be 'expo', got 'learned'"),
        (f"{DIT}.sliding_window", [1, 1], r"sliding_window = \[1, 1\] is not supported"),
        (f"{DIT}.attn_kwargs", {"qk_norm": "l2"}, "qk_norm"),
        (f"{DIT}.ff_kwargs", {"glu": False}, r"ff_kwargs\.glu = False"),
        (f"{DIT}.norm_kwargs", {"force_fp32": False}, "force_fp32"),
        (f"{DIT}.num_heads", 15, "must be a multiple of num_heads"),
        ("model.diffusion.diffusion_objective", "v", "'v' is not one of rectified_flow"),
        ("model.diffusion.prepend_cond_ids", ["prompt"], "prepend_cond_ids"),
        (f"{SAME}.encoder.config.conformer", True, r"encoder\.conformer = True"),
        (f"{SAME}.encoder.config.differential", False, "differential"),
        (f"{SAME}.decoder.config.strides", [4, 4], r"SAME has one stage, got strides \[4, 4\]"),
        (f"{SAME}.decoder.config.sliding_window", [1, 2], "must be symmetric"),
        (f"{SAME}.pretransform.config.oversampling", 2, "oversampling"),
        (f"{SAME}.bottleneck.config.noise_augment_dim", 3, "noise_augment_dim"),
    ],
)
def test_an_option_that_would_change_the_numbers_is_refused(
    raw: dict[str, Any], path: str, value: Any, message: str
) -> None:
    parent, name = at(raw, path)
    parent[name] = value
    with pytest.raises(ModelError, match=message):
        parse_config(raw)


def test_other_conditioners_are_refused(raw: dict[str, Any]) -> None:
    raw["model"]["conditioning"]["configs"][1]["id"] = "seconds_start"
    with pytest.raises(ModelError, match=r"\['prompt', 'seconds_start'\] are not prompt and"):
        parse_config(raw)


def test_unknown_options_of_the_autoencoder_are_named(
    raw: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    raw["model"]["pretransform"]["config"]["encoder"]["config"]["mood"] = 1
    parse_config(raw)
    assert "encoder: unknown options without effect here: mood" in caplog.text


def test_unknown_options_of_the_transformer_are_refused(raw: dict[str, Any]) -> None:
    raw["model"]["diffusion"]["config"]["colour"] = "blue"
    with pytest.raises(ModelError, match="unknown options: colour"):
        parse_config(raw)


def test_files_that_are_no_model_are_refused(tmp_path: Path, raw: dict[str, Any]) -> None:
    path = tmp_path / "model_config.json"
    with pytest.raises(ModelError, match=r"model_config\.json is missing\. A model folder holds"):
        load_config(path)
    path.write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        load_config(path)
    del raw["model"]["diffusion"]["config"]["embed_dim"]
    path.write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="lacks the key 'embed_dim'"):
        load_config(path)
    path.write_text(json.dumps({"model": 3}))
    with pytest.raises(ModelError, match="does not have the layout of an SA3 model"):
        load_config(path)
    path.write_text("[]")
    with pytest.raises(ModelError, match="does not have the layout of an SA3 model"):
        load_config(path)
