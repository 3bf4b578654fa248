"""The part of SA3 that adapters change: diffusion transformer and conditioners under one root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sa3lora.errors import ModelError
from sa3lora.models.config import ModelConfig, PromptConfig
from sa3lora.models.dit import DiffusionTransformer
from sa3lora.models.layers import FourierFeatures
from sa3lora.models.packed import Packing
from sa3lora.models.upload import upload


@dataclass(frozen=True)
class Conditioning:
    """What the transformer is told about each clip of a batch.

    Attributes:
        cross: Prompt tokens and one duration token, (B, L + 1, D).
        mask: True on real tokens, (B, L + 1). Only guidance with a negative prompt reads it.
        global_cond: Duration embedding, (B, D).
    """

    cross: Tensor
    mask: Tensor
    global_cond: Tensor

    def dropped(self, drop: Tensor) -> Conditioning:
        """Zero the prompt and duration tokens of the items where `drop` (B,) is True."""
        cross = torch.where(drop[:, None, None], torch.zeros_like(self.cross), self.cross)
        return Conditioning(cross, self.mask, self.global_cond)

    def negative(self) -> Conditioning:
        """Zero the padded tokens, as the official code does for negative prompts."""
        return Conditioning(self.cross * self.mask[..., None], self.mask, self.global_cond)

    def unconditional(self) -> Conditioning:
        """Zero every token and keep the duration embedding."""
        return Conditioning(torch.zeros_like(self.cross), self.mask, self.global_cond)

    def __add__(self, other: Conditioning) -> Conditioning:
        """Put two batches behind one another."""
        return Conditioning(
            torch.cat([self.cross, other.cross]),
            torch.cat([self.mask, other.mask]),
            torch.cat([self.global_cond, other.global_cond]),
        )


class PromptConditioner(nn.Module):
    """Pad text embeddings to the model's prompt length."""

    def __init__(self, config: PromptConfig, dim: int) -> None:
        super().__init__()
        self.max_length, self.dim = config.max_length, dim
        self.padding_mode = config.padding_mode
        if config.padding_mode == "learned":
            self.padding_embedding = nn.Parameter(0.02 * torch.randn(dim))
        elif config.padding_mode == "none":
            raise ModelError("prompt.padding_mode 'none' is not supported, use learned or zero")

    def forward(self, text: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return tokens (B, max_length, D), float32, and their mask (B, max_length).

        Args:
            text: One (L_i, D) tensor of valid tokens an item, all in one place; may be empty.
            device: Where the result lies.
        """
        for item in text:
            if item.ndim != 2 or item.shape[1] != self.dim or item.shape[0] > self.max_length:
                raise ValueError(
                    f"a text embedding must be (at most {self.max_length}, {self.dim}), "
                    f"got {tuple(item.shape)}"
                )
        lengths = torch.tensor([item.shape[0] for item in text])
        tokens = pad_sequence([item.float() for item in text], batch_first=True)
        tokens = nn.functional.pad(tokens, (0, 0, 0, self.max_length - tokens.shape[1]))
        tokens = upload(tokens, device)
        mask = upload(torch.arange(self.max_length) < lengths[:, None], device)
        if self.padding_mode == "learned":
            filler = self.padding_embedding.float().to(device)
            tokens = torch.where(mask[..., None], tokens, filler)
        return tokens, mask


class _NumberEmbedder(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Sequential(FourierFeatures(256), nn.Linear(256, dim))

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        features = self.embedding[0](value)  # float32 until here, see the module's class
        embedded: Tensor = self.embedding[1](features.to(dtype))
        return embedded


class NumberConditioner(nn.Module):
    """Embed one number an item; float32 until after the Fourier features."""

    def __init__(self, dim: int, value_range: tuple[float, float]) -> None:
        super().__init__()
        self.low, self.high = value_range
        self.embedder = _NumberEmbedder(dim)

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (B, 1, D) for values (B,)."""
        value = value.float().clamp(self.low, self.high)
        unit = (value - self.low) / (self.high - self.low)
        embedded: Tensor = self.embedder(unit, dtype)
        return embedded[:, None]


class Denoiser(nn.Module):
    """Root module of adapters: `model` is the transformer, `conditioners` what feeds it.

    A site `model.x` is `model.model.x` in a full checkpoint, `conditioners.x` is
    `conditioner.conditioners.x`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.dit is None or config.prompt is None:
            raise ModelError(
                "this model is an autoencoder alone, it has no diffusion transformer. "
                "Name a model that generates, such as small-music-base."
            )
        self.model = DiffusionTransformer(config.dit)
        self.conditioners = nn.ModuleDict(
            {
                "prompt": PromptConditioner(config.prompt, config.cond_dim),
                "seconds_total": NumberConditioner(config.cond_dim, config.seconds_range),
            }
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the transformer's weights."""
        return self.model.transformer.memory_tokens.dtype

    @property
    def device(self) -> torch.device:
        """Where the transformer's weights lie."""
        return self.model.transformer.memory_tokens.device

    def condition(self, text: Sequence[Tensor], seconds: Tensor) -> Conditioning:
        """Embed prompts and durations.

        Args:
            text: Valid tokens of each prompt, (L_i, D), as `TextEncoder.encode` returns them.
            seconds: Duration of each clip, (B,).
        """
        if len(text) != seconds.shape[0]:
            raise ValueError(f"{len(text)} prompts but {seconds.shape[0]} durations")
        device = self.device
        prompt, prompt_mask = self.conditioners["prompt"](text, device)
        duration = self.conditioners["seconds_total"](upload(seconds, device), self.dtype)
        cross = torch.cat([prompt.to(duration.dtype), duration], dim=1)
        mask = nn.functional.pad(prompt_mask, (0, 1), value=True)
        return Conditioning(cross, mask, duration[:, 0])

    def velocity(
        self,
        x: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        *,
        keep: Tensor | None = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        packed: bool = False,
    ) -> Tensor:
        """Predict `noise - data` at noise level t.

        Args:
            x: Noisy latents, (B, C, T).
            t: Noise level, (B,).
            conditioning: From `condition`.
            keep: 1 on frames that are given, 0 on frames to make, (B, T); None makes all.
            known: Given latents, zero where `keep` is 0, (B, C, T); None for none.
            mask: True on real frames, (B, T); None when all are. Padding is as if absent. Best on
                the host, where it is read without waiting for a GPU.
            packed: Run the real frames end to end in one sequence, so that padding costs nothing.
                They must come first in every row. The velocity of padding is then 0.

        Returns:
            Velocity, (B, C, T), in the dtype of the weights.
        """
        keep = x.new_zeros(x.shape[0], x.shape[2]) if keep is None else keep.to(x.dtype)
        known = torch.zeros_like(x) if known is None else known
        local = torch.cat([keep[:, None], known.to(x.dtype)], dim=1)
        cross, global_cond = conditioning.cross, conditioning.global_cond
        if packed and mask is not None:
            memory = self.model.transformer.memory_tokens.shape[0]
            packing = Packing.of(
                mask, num_memory=memory, num_context=cross.shape[1], device=x.device
            )
            x, local = (packing.pack(y.transpose(1, 2)).transpose(1, 2) for y in (x, local))
            frames: Tensor = self.model(
                x, t, cross=cross, global_cond=global_cond, local=local, mask=packing
            )
            return packing.unpack(frames.transpose(1, 2)).transpose(1, 2)
        velocity: Tensor = self.model(
            x, t, cross=cross, global_cond=global_cond, local=local, mask=mask
        )
        return velocity
