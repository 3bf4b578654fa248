"""Configurations of the released models by name, for folders of random weights and for tests.

Options without effect on the computation are left out.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

from sa3lora.errors import ModelError
from sa3lora.models.config import Json
from sa3lora.models.registry import MODELS, TINY_FOLDER, base_name

TEXT_FOLDER = "t5gemma-b-b-ul2"


@dataclass(frozen=True)
class _Size:
    """What differs between the two sizes."""

    sample_size: int
    embed_dim: int
    depth: int
    num_heads: int
    transformer: Json
    shift: Json


_SMALL = _Size(
    sample_size=5292032, embed_dim=1024, depth=20, num_heads=16,
    transformer={"timestep_features_logsnr": False, "attn_kwargs": {"differential": False}},
    shift={"type": "full", "min_length": 256, "max_length": 4096},
)  # fmt: skip
_MEDIUM = _Size(
    sample_size=16777216, embed_dim=1536, depth=24, num_heads=24,
    transformer={"attn_kwargs": {"differential": True}},
    shift={"min_length": 256, "max_length": 4096},
)  # fmt: skip
_SMALL_BASE_SAMPLES = 5324800
_SHARED_SAME: Json = {
    "c_mults": [6], "strides": [16], "latent_dim": 256, "differential": True, "dim_heads": 64,
    "variable_stride": True,
}  # fmt: skip
_SAME_S: Json = _SHARED_SAME | {
    "channels": 128, "transformer_depths": [6], "dyt": True, "chunk_size": 32,
    "chunk_midpoint_shift": True,
}  # fmt: skip
_SAME_L: Json = _SHARED_SAME | {
    "channels": 256, "transformer_depths": [12], "sliding_window": [1, 1],
}  # fmt: skip


def released_config(name: str) -> Json:
    """Return the `model_config.json` of a registry name.

    Raises:
        ModelError: If there is no such name, or this installation lacks the embedded model.
    """
    if name not in MODELS:
        raise ModelError(f"there is no model {name!r}. Known names: {', '.join(MODELS)}.")
    if name == "tiny":
        return _tiny_file("model_config.json")
    family = base_name(name)
    if family in ("same-s", "same-l"):
        same = same_s_block() if family == "same-s" else same_l_block()
        return {
            "model_type": "autoencoder", "sample_rate": 44100, "audio_channels": 2, "model": same,
        }  # fmt: skip
    size = _MEDIUM if family == "medium" else _SMALL
    base = name != family
    return {
        "model_type": "diffusion_cond_inpaint",
        "sample_rate": 44100,
        "sample_size": _SMALL_BASE_SAMPLES if base and size is _SMALL else size.sample_size,
        "audio_channels": 2,
        "model": {
            "io_channels": 256,
            "pretransform": {
                "type": "autoencoder",
                "chunked": True,
                "iterate_batch": False,
                "config": same_l_block() if size is _MEDIUM else same_s_block(),
            },
            "conditioning": {"cond_dim": 768, "configs": _conditioners(family)},
            "diffusion": _diffusion(size, objective="rectified_flow" if base else "rf_denoiser"),
        },
    }


def same_s_block() -> Json:
    """Return the autoencoder of the small models."""
    return _same(
        encoder=_SAME_S | {"in_channels": 512, "conv_mapping": False, "mask_noise": 0.0},
        decoder=_SAME_S
        | {"out_channels": 512, "sinusoidal_blocks": [0], "conv_mapping": True, "mask_noise": 0.01},
    )


def same_l_block() -> Json:
    """Return the autoencoder of the medium models."""
    return _same(
        encoder=_SAME_L | {"in_channels": 512, "mask_noise": 0.001},
        decoder=_SAME_L | {"out_channels": 512, "sinusoidal_blocks": [8], "mask_noise": 0.1},
    )


def _same(*, encoder: Json, decoder: Json) -> Json:
    bottleneck = {
        "dim": 256, "noise_augment_dim": 0, "noise_regularize": True, "auto_scale": True,
        "freeze": True,
    }  # fmt: skip
    return {
        "latent_dim": 256,
        "downsampling_ratio": 4096,
        "io_channels": 2,
        "pretransform": {"type": "patched", "config": {"channels": 2, "patch_size": 256}},
        "encoder": {"type": "taae_v2", "config": copy.deepcopy(encoder)},
        "decoder": {"type": "taae_v2", "config": copy.deepcopy(decoder)},
        "bottleneck": {"type": "softnorm", "config": bottleneck},
    }


def _conditioners(family: str) -> list[Json]:
    prompt = {
        "repo_id": f"stabilityai/stable-audio-3-{family}", "subfolder": TEXT_FOLDER,
        "max_length": 256, "padding_mode": "learned",
    }  # fmt: skip
    seconds = {"min_val": 0, "max_val": 384, "fourier_features_type": "expo"}
    return [
        {"id": "prompt", "type": "t5gemma", "config": prompt},
        {"id": "seconds_total", "type": "number", "config": seconds},
    ]


def _diffusion(size: _Size, *, objective: str) -> Json:
    transformer = copy.deepcopy(size.transformer)
    transformer["attn_kwargs"] = {"qk_norm": "rms"} | transformer["attn_kwargs"]
    return {
        "type": "dit",
        "diffusion_objective": objective,
        "cross_attention_cond_ids": ["prompt", "seconds_total"],
        "global_cond_ids": ["seconds_total"],
        "local_add_cond_ids": ["inpaint_mask", "inpaint_masked_input"],
        "mask_padding_attention": True,
        "use_effective_length_for_schedule": True,
        "distribution_shift_options": dict(size.shift),
        "config": {
            "io_channels": 256,
            "embed_dim": size.embed_dim,
            "depth": size.depth,
            "num_heads": size.num_heads,
            "cond_token_dim": 768,
            "global_cond_dim": 768,
            "local_add_cond_dim": 257,
            "global_cond_type": "adaLN",
            "timestep_features_type": "expo",
            "norm_type": "rms_norm",
            "norm_kwargs": {"force_fp32": True},
            "ff_kwargs": {"mult": 4.0},
            "num_memory_tokens": 64,
        }
        | transformer,
    }


def text_config(name: str, *, vocab_size: int) -> Json | None:
    """Return the `config.json` of a model's text encoder; None for an autoencoder alone."""
    if base_name(name) in ("same-s", "same-l"):
        return None
    if name == "tiny":
        return _tiny_file("text_encoder/config.json")
    module = {
        "vocab_size": vocab_size, "hidden_size": 768, "intermediate_size": 2048,
        "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12,
        "head_dim": 64, "query_pre_attn_scalar": 64, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "sliding_window": 4096,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "attention_bias": False,
        "attention_dropout": 0.0, "dropout_rate": 0.0, "initializer_range": 0.02,
        "tie_word_embeddings": True, "model_type": "t5_gemma_module",
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "layer_types": ["sliding_attention", "full_attention"] * 6,
    }  # fmt: skip
    return {
        "architectures": ["T5GemmaEncoderModel"],
        "model_type": "t5gemma",
        "is_encoder_decoder": False,
        "dtype": "bfloat16",
        "vocab_size": vocab_size,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.02,
        "encoder": module | {"is_decoder": False},
        "decoder": module | {"is_decoder": True, "cross_attention_hidden_size": 768},
    }


def _tiny_file(name: str) -> dict[str, Any]:
    path = TINY_FOLDER / name
    if not path.is_file():
        raise ModelError(f"this installation lacks the embedded model ({path}). Install it again.")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
