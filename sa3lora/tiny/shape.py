"""The fixed shape of the embedded model, as an official `model_config.json`."""

from __future__ import annotations

from typing import Any

SAMPLE_RATE = 16000
RATIO = 1536
LATENT_DIM = 64
PATCHES_PER_LATENT = 4
MAX_LATENTS = 250  # 24 s
COND_DIM = 128
MAX_PROMPT_TOKENS = 64


def same_config() -> dict[str, Any]:
    """Return the autoencoder's block: SAME-S with 4 patches of 24 ms to a latent.

    Long patches make the width of a token, not the length of a sequence, carry the waveform, which
    trains far faster on a CPU than the 16 short ones of the released models.
    """
    shared = {
        "channels": 192, "c_mults": [1], "strides": [PATCHES_PER_LATENT],
        "latent_dim": LATENT_DIM, "transformer_depths": [2], "differential": True,
        "dim_heads": 32, "dyt": True,
        "variable_stride": False, "chunk_size": 2 * PATCHES_PER_LATENT,
        "chunk_midpoint_shift": True, "ff_mult": 2,
    }  # fmt: skip
    patched = {"channels": 2, "patch_size": RATIO // PATCHES_PER_LATENT}
    return {
        "latent_dim": LATENT_DIM,
        "downsampling_ratio": RATIO,
        "io_channels": 2,
        "pretransform": {"type": "patched", "config": patched},
        "encoder": {"type": "taae_v2", "config": shared | {"in_channels": RATIO // 2}},
        "decoder": {
            "type": "taae_v2",
            "config": shared | {"out_channels": RATIO // 2, "conv_mapping": True, "ff_mult": 4},
        },
        "bottleneck": {
            "type": "softnorm",
            "config": {"dim": LATENT_DIM, "noise_augment_dim": 0, "auto_scale": True},
        },
    }


def model_config() -> dict[str, Any]:
    """Return the whole configuration."""
    transformer = {
        "io_channels": LATENT_DIM, "embed_dim": 192, "depth": 5, "num_heads": 3,
        "cond_token_dim": COND_DIM, "global_cond_dim": COND_DIM,
        "local_add_cond_dim": LATENT_DIM + 1, "global_cond_type": "adaLN",
        "timestep_features_type": "expo", "num_memory_tokens": 8,
        "attn_kwargs": {"qk_norm": "rms", "differential": False},
        "norm_type": "rms_norm", "norm_kwargs": {"force_fp32": True}, "ff_kwargs": {"mult": 2.0},
    }  # fmt: skip
    prompt = {
        "model_path": "text_encoder", "max_length": MAX_PROMPT_TOKENS, "padding_mode": "learned",
    }  # fmt: skip
    seconds = {"min_val": 0, "max_val": 24, "fourier_features_type": "expo"}
    return {
        "model_type": "diffusion_cond_inpaint",
        "sample_rate": SAMPLE_RATE,
        "sample_size": MAX_LATENTS * RATIO,
        "audio_channels": 2,
        "model": {
            "io_channels": LATENT_DIM,
            "pretransform": {"type": "autoencoder", "chunked": False, "config": same_config()},
            "conditioning": {
                "cond_dim": COND_DIM,
                "configs": [
                    {"id": "prompt", "type": "t5gemma", "config": prompt},
                    {"id": "seconds_total", "type": "number", "config": seconds},
                ],
            },
            "diffusion": {
                "type": "dit",
                "diffusion_objective": "rectified_flow",
                "cross_attention_cond_ids": ["prompt", "seconds_total"],
                "global_cond_ids": ["seconds_total"],
                "local_add_cond_ids": ["inpaint_mask", "inpaint_masked_input"],
                "mask_padding_attention": True,
                "use_effective_length_for_schedule": True,
                "distribution_shift_options": {
                    "type": "full", "min_length": 16, "max_length": MAX_LATENTS,
                },
                "config": transformer,
            },
        },
    }  # fmt: skip
