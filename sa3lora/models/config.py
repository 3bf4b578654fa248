"""What a `model_config.json` says, as plain values. `config_parse` reads the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class DitConfig:
    """Shape of the diffusion transformer."""

    io_channels: int
    embed_dim: int
    depth: int
    num_heads: int
    cond_token_dim: int
    global_cond_dim: int
    local_add_cond_dim: int
    num_memory_tokens: int
    differential: bool
    ff_mult: float
    timestep_features_dim: int

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.embed_dim // self.num_heads


@dataclass(frozen=True)
class ResamplingConfig:
    """Shape of the encoder or the decoder of SAME.

    `chunk_size` (patches) rules SAME-S, `window` (latents on each side) rules SAME-L. Generation
    rounds its lengths up to `length_multiple` latents. `shared_new_token` is `variable_stride`: one
    learned token for all places, as released, or one for each.
    """

    patch_channels: int
    width: int
    stride: int
    depth: int
    latent_dim: int
    dim_heads: int
    ff_mult: int
    chunk_size: int | None
    midpoint_shift: bool
    window: int | None
    conv_mapping: bool
    mask_noise: float
    sine_blocks: int
    length_multiple: int
    shared_new_token: bool


@dataclass(frozen=True)
class SameConfig:
    """Shape of the SAME autoencoder."""

    sample_rate: int
    audio_channels: int
    patch_size: int
    latent_dim: int
    downsampling_ratio: int
    encoder: ResamplingConfig
    decoder: ResamplingConfig
    noise_regularize: bool
    auto_scale: bool


@dataclass(frozen=True)
class PromptConfig:
    """Where the text encoder lies and how prompts are padded."""

    max_length: int
    padding_mode: str
    model_path: str | None
    repo_id: str | None
    subfolder: str
    model_name: str


@dataclass(frozen=True)
class ModelConfig:
    """Everything that the workbench reads from one `model_config.json`.

    `dit` and the fields after it are None or empty for a file that holds an autoencoder only.
    """

    same: SameConfig
    raw: Json
    sample_size: int = 0
    dit: DitConfig | None = None
    prompt: PromptConfig | None = None
    seconds_range: tuple[float, float] = (0.0, 384.0)
    cond_dim: int = 0
    objective: str = "rectified_flow"
    training_shift: Json | None = None
    sampling_shift: Json | None = None

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.same.sample_rate

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""
        return self.same.latent_dim

    @property
    def downsampling_ratio(self) -> int:
        """Audio samples of one latent frame."""
        return self.same.downsampling_ratio

    @property
    def is_post_trained(self) -> bool:
        """Whether this is a few-step model."""
        return self.objective == "rf_denoiser"

    @property
    def max_duration_s(self) -> float:
        """Longest clip that the model was made for."""
        return min(self.sample_size / self.sample_rate, self.seconds_range[1])

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt; what is beyond is cut by the tokenizer."""
        return self.prompt.max_length if self.prompt else 0
