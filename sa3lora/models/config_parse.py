"""Reading `model_config.json`: the options that the released models use, and nothing silent.

An option that would change the computation but is not implemented is an error; options known to
have no effect are accepted; an unknown one is logged by name.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sa3lora.errors import ModelError
from sa3lora.models.config import (
    DitConfig,
    Json,
    ModelConfig,
    PromptConfig,
    ResamplingConfig,
    SameConfig,
)

logger = logging.getLogger(__name__)

_AGAIN = "Take the one that came with the weights, or download the model again."


def load_config(path: Path) -> ModelConfig:
    """Read a `model_config.json`.

    Raises:
        ModelError: If it is missing, no JSON, incomplete, or asks for something not implemented.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing. A model folder holds model_config.json and model.safetensors."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = f" is not JSON ({error})" if path.stat().st_size else ": 0 bytes"
        raise ModelError(f"{path}{reason}. {_AGAIN}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path} does not have the layout of an SA3 model: no object. {_AGAIN}")
    try:
        return parse_config(raw)
    except KeyError as error:
        raise ModelError(f"{path} lacks the key {error.args[0]!r}. {_AGAIN}") from None
    except (TypeError, AttributeError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"{path} does not have the layout of an SA3 model ({error}). {_AGAIN}"
        ) from None


def parse_config(raw: Json) -> ModelConfig:
    """Parse a full model config, or one of an autoencoder alone."""
    model = raw["model"]
    if "encoder" in model:
        return ModelConfig(same=_same(model, raw), raw=raw)
    _refuse_conditioning(model["diffusion"])
    diffusion = model["diffusion"]
    configs = {c["id"]: c for c in model["conditioning"]["configs"]}
    if set(configs) != {"prompt", "seconds_total"}:
        raise ModelError(f"conditioners {sorted(configs)} are not prompt and seconds_total")
    seconds = configs["seconds_total"]["config"]
    _expect("seconds_total", seconds, {"fourier_features_type": ("expo",)})
    return ModelConfig(
        same=_same(model["pretransform"]["config"], raw),
        raw=raw,
        sample_size=int(raw["sample_size"]),
        dit=_dit(diffusion["config"]),
        prompt=_prompt(configs["prompt"]["config"]),
        seconds_range=(float(seconds.get("min_val", 0)), float(seconds.get("max_val", 1))),
        cond_dim=int(model["conditioning"]["cond_dim"]),
        objective=_objective(diffusion.get("diffusion_objective", "v")),
        training_shift=diffusion.get("distribution_shift_options"),
        sampling_shift=diffusion.get("sampling_distribution_shift_options"),
    )


def _objective(name: str) -> str:
    if name not in ("rectified_flow", "rf_denoiser"):
        raise ModelError(f"diffusion_objective {name!r} is not one of rectified_flow, rf_denoiser")
    return name


def _expect(where: str, config: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse options that change the computation in a way that is not implemented."""
    for key, values in allowed.items():
        if key in config and config[key] not in values:
            raise ModelError(
                f"{where}.{key} = {config[key]!r} is not supported "
                f"(supported: {', '.join(map(repr, values))})"
            )


def _note_unknown(where: str, config: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(config) - known)
    if unknown:
        logger.warning("%s: unknown options without effect here: %s", where, ", ".join(unknown))


def _refuse_conditioning(diffusion: Json) -> None:
    expected = {
        "cross_attention_cond_ids": ["prompt", "seconds_total"],
        "global_cond_ids": ["seconds_total"],
        "local_add_cond_ids": ["inpaint_mask", "inpaint_masked_input"],
        "input_concat_ids": [],
        "prepend_cond_ids": [],
        "modular_local_cond_configs": [],
    }
    for key, value in expected.items():
        if diffusion.get(key, []) != value:
            raise ModelError(f"diffusion.{key} = {diffusion.get(key)!r}; SA3 models have {value!r}")


_DIT_ALLOWED: dict[str, tuple[Any, ...]] = {
    "patch_size": (1,),
    "project_cond_tokens": (True,),
    "project_global_cond": (True,),
    "input_concat_dim": (0,),
    "prepend_cond_dim": (0,),
    "transformer_type": ("continuous_transformer",),
    "global_cond_type": ("adaLN",),
    "timestep_cond_type": ("global",),
    "timestep_embed_dim": (None,),
    "timestep_features_type": ("expo",),
    "timestep_features_logsnr": (False,),
    "final_cross_attn_ix": (-1,),
    "causal": (False,),
    "rotary_pos_emb": (True,),
    "cross_attn_rotary_pos_emb": (False,),
    "conformer": (False,),
    "use_sinusoidal_emb": (False,),
    "use_abs_pos_emb": (False,),
    "sliding_window": (None,),
    "layer_scale": (False,),
    "add_rope": (False,),
    "norm_type": ("rms_norm",),
}
_DIT_SHAPE = {
    "io_channels", "embed_dim", "depth", "num_heads", "cond_token_dim", "global_cond_dim",
    "local_add_cond_dim", "num_memory_tokens", "timestep_features_dim", "attn_kwargs",
    "ff_kwargs", "norm_kwargs", "zero_init_branch_outputs", "abs_pos_emb_max_length",
}  # fmt: skip


def _dit(config: Json) -> DitConfig:
    required = {"timestep_features_type": "expo", "global_cond_type": "adaLN"}
    for key, value in (required | {"norm_type": "rms_norm"}).items():
        if config.get(key) != value:
            raise ModelError(f"diffusion.config.{key} must be {value!r}, got {config.get(key)!r}")
    _expect("diffusion.config", config, _DIT_ALLOWED)
    unknown = sorted(set(config) - set(_DIT_ALLOWED) - _DIT_SHAPE)
    if unknown:
        raise ModelError(f"diffusion.config has unknown options: {', '.join(unknown)}")
    attn, ff = config.get("attn_kwargs", {}), config.get("ff_kwargs", {})
    attn_allowed = {"qk_norm_eps": (1e-6,), "feat_scale": (False,)}
    _expect("attn_kwargs", {"qk_norm": "none"} | attn, {"qk_norm": ("rms",)} | attn_allowed)
    _expect("ff_kwargs", ff, {"no_bias": (False,), "glu": (True,), "use_conv": (False,)})
    _expect("ff_kwargs", ff, {"sinusoidal": (False,)})
    norm = {"force_fp32": False} | config.get("norm_kwargs", {})
    _expect("norm_kwargs", norm, {"force_fp32": (True,), "fix_scale": (False,), "eps": (1e-5,)})
    if config["embed_dim"] % config["num_heads"]:
        raise ModelError("diffusion.config.embed_dim must be a multiple of num_heads")
    return DitConfig(
        io_channels=config["io_channels"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        cond_token_dim=config["cond_token_dim"],
        global_cond_dim=config["global_cond_dim"],
        local_add_cond_dim=config["local_add_cond_dim"],
        num_memory_tokens=config.get("num_memory_tokens", 0),
        differential=bool(attn.get("differential", False)),
        ff_mult=float(ff.get("mult", 4)),
        timestep_features_dim=config.get("timestep_features_dim", 256),
    )


def _prompt(config: Json) -> PromptConfig:
    _expect("prompt", config, {"project_out": (False,), "enable_grad": (False,)})
    _expect("prompt", config, {"padding_mode": ("learned", "zero", "none")})
    return PromptConfig(
        max_length=config.get("max_length", 128),
        padding_mode=config.get("padding_mode", "zero"),
        model_path=config.get("model_path"),
        repo_id=config.get("repo_id"),
        subfolder=config.get("subfolder", ""),
        model_name=config.get("model_name", "google/t5gemma-b-b-ul2"),
    )


def _same(config: Json, raw: Json) -> SameConfig:
    patched = config["pretransform"]["config"]
    _expect("pretransform", patched, {"oversampling": (1,), "postfilter_channels": (0,)})
    bottleneck = config["bottleneck"]["config"]
    _expect("bottleneck", bottleneck, {"noise_augment_dim": (0,)})
    _expect("decoder", config["decoder"], {"soft_clip": (False, None)})
    encoder, decoder = config["encoder"]["config"], config["decoder"]["config"]
    return SameConfig(
        sample_rate=int(raw["sample_rate"]),
        audio_channels=patched["channels"],
        patch_size=patched["patch_size"],
        latent_dim=config["latent_dim"],
        downsampling_ratio=config["downsampling_ratio"],
        encoder=_resampling("encoder", encoder, encoder.get("in_channels", 2)),
        decoder=_resampling("decoder", decoder, decoder.get("out_channels", 2)),
        noise_regularize=bool(bottleneck.get("noise_regularize", False)),
        auto_scale=bool(bottleneck.get("auto_scale", False)),
    )


_SAME_ALLOWED: dict[str, tuple[Any, ...]] = {
    "conformer": (False,),
    "layer_scale": (False,),
    "cross_attn": (False,),
    "feat_scale": (False,),
    "mapping_bias": (True,),
    "differential": (True,),
    "dyt": (True,),
}
_SAME_KNOWN = {
    "in_channels", "out_channels", "channels", "latent_dim", "c_mults", "strides",
    "transformer_depths", "dim_heads", "ff_mult", "chunk_size", "chunk_midpoint_shift",
    "sliding_window", "variable_stride", "conv_mapping", "mask_noise", "sinusoidal_blocks",
    # accepted by the official code and without effect at inference
    "checkpointing", "causal", "freeze_backbone", "use_flash", "mapping_style", "conv_bias",
    "use_snake", "use_dilated_conv", "enable_inner_layer_dropout",
}  # fmt: skip


def _resampling(where: str, config: Json, patch_channels: int) -> ResamplingConfig:
    _expect(where, config, _SAME_ALLOWED)
    _note_unknown(where, config, set(_SAME_ALLOWED) | _SAME_KNOWN)
    if not len(config["c_mults"]) == len(config["strides"]) == 1:
        raise ModelError(f"{where}: SAME has one stage, got strides {config['strides']}")
    window = config.get("sliding_window")
    if window is not None and (len(window) != 2 or window[0] != window[1]):
        raise ModelError(f"{where}.sliding_window must be symmetric, got {window}")
    sine = config.get("sinusoidal_blocks", [0])[0]
    return ResamplingConfig(
        patch_channels=patch_channels,
        width=config["channels"] * config["c_mults"][0],
        stride=config["strides"][0],
        depth=config["transformer_depths"][0],
        latent_dim=config["latent_dim"],
        dim_heads=config.get("dim_heads", 128),
        ff_mult=config.get("ff_mult", 3),
        chunk_size=None if window else config.get("chunk_size", 128),
        midpoint_shift=bool(config.get("chunk_midpoint_shift", False)),
        window=window[0] if window else None,
        conv_mapping=bool(config.get("conv_mapping", False)),
        mask_noise=float(config.get("mask_noise", 0.0)),
        sine_blocks=sine,
        # the official code takes its default chunk size here where a model has none
        length_multiple=max(config.get("chunk_size", 32) // config["strides"][0], 1),
        shared_new_token=bool(config.get("variable_stride", False)),
    )
