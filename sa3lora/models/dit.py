"""The diffusion transformer of Stable Audio 3, with the published key names."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sa3lora.models.attention import Padding
from sa3lora.models.config import DitConfig
from sa3lora.models.dit_attention import CrossAttention, Layout, Rotation, SelfAttention
from sa3lora.models.layers import (
    FeedForward,
    FourierFeatures,
    RmsNorm,
    RotaryEmbedding,
    two_layer,
)
from sa3lora.models.packed import Packing
from sa3lora.models.recompute import remade


def _only(x: Tensor, layout: Layout) -> Tensor:
    """Zero what padded positions would add, as the official packed kernels do."""
    return x * layout.mask[..., None].to(x.dtype) if isinstance(layout, Padding) else x


class Block(nn.Module):
    """One transformer block with shared adaptive modulation and a local conditioning input."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.pre_norm = RmsNorm(dim)
        self.self_attn = SelfAttention(config)
        self.cross_attend_norm = RmsNorm(dim)
        self.cross_attn = CrossAttention(config)
        self.ff_norm = RmsNorm(dim)
        self.ff = FeedForward(dim, mult=config.ff_mult)
        self.to_scale_shift_gate = nn.Parameter(torch.randn(6 * dim) / math.sqrt(dim))
        self.to_local_embed = two_layer(config.local_add_cond_dim, dim, dim, bias=True)
        self.frugal = False

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        modulation: Tensor,
        local: Tensor,
        rotation: Rotation,
        layout: Layout,
    ) -> Tensor:
        """Run the block on (B, S, D), or on a packed (1, S, D).

        Args:
            x: Memory tokens and frames, (B, S, D).
            context: Projected prompt and duration tokens, (B, L, D).
            modulation: Scale, shift and gate of both branches, (B, 6 D).
            local: Inpaint conditioning of the frames alone, (B, T, 1 + C).
            rotation: Of the S positions.
            layout: Which of the S positions exist; memory tokens do.
        """
        changes = (self.to_scale_shift_gate + modulation).chunk(6, dim=-1)
        packed = layout if isinstance(layout, Packing) else None
        scale1, shift1, gate1, scale2, shift2, gate2 = (
            each.unsqueeze(1) if packed is None else packed.spread(each) for each in changes
        )
        gamma = self.pre_norm.gamma
        with remade(self._modulated, x, gamma, scale1, shift1, when=self.frugal) as h:
            attended = self.self_attn(h, rotation, layout)
        x = x + torch.sigmoid(1 - gate1) * _only(attended, layout)
        norm = self.cross_attend_norm
        with remade(norm.scaled, x, norm.gamma, when=self.frugal) as h:
            attended = self.cross_attn(h, context, layout)
        x = x + attended
        # memory tokens come first and get no local conditioning
        given = self.to_local_embed(local)
        if packed is None:
            x = x + F.pad(given, (0, 0, x.shape[1] - local.shape[1], 0))
        else:
            x = x + packed.at_frames(given)
        gamma = self.ff_norm.gamma
        with remade(self._modulated, x, gamma, scale2, shift2, when=self.frugal) as h:
            fed = self.ff(h)
        return x + torch.sigmoid(1 - gate2) * _only(fed, layout)

    def _modulated(self, x: Tensor, gamma: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        # all norms of a block are of one kind
        return self.pre_norm.scaled(x, gamma) * (1 + scale) + shift

    def be_frugal(self, frugal: bool) -> None:
        """Keep the outputs of products alone for the backward pass, and make the rest again."""
        self.frugal = frugal
        self.self_attn.frugal = self.cross_attn.frugal = self.ff.frugal = frugal


class Transformer(nn.Module):
    """Projections, memory tokens and blocks."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.project_in = nn.Linear(config.io_channels, dim, bias=False)
        self.project_out = nn.Linear(dim, config.io_channels, bias=False)
        self.memory_tokens = nn.Parameter(torch.randn(config.num_memory_tokens, dim))
        self.rotary_pos_emb = RotaryEmbedding(config.head_dim)
        self.global_cond_embedder = two_layer(dim, dim, 6 * dim, bias=True)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.num_checkpointed = 0  # of the first blocks: they are the last in the backward pass

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        global_cond: Tensor,
        local: Tensor,
        mask: Tensor | Packing | None,
    ) -> Tensor:
        """Run all blocks on (B, T, C); `local` is (B, T, 1 + C) and a mask (B, T)."""
        batch, memory = x.shape[0], self.memory_tokens.shape[0]
        layout: Layout = None
        if isinstance(mask, Packing):
            layout = mask
            h = layout.with_memory(self.project_in(x), self.memory_tokens)
            rotation = layout.rotation(self.rotary_pos_emb)
        else:
            h = torch.cat([self.memory_tokens.expand(batch, -1, -1), self.project_in(x)], dim=1)
            rotation = self.rotary_pos_emb(h.shape[1])
            if mask is not None:
                layout = Padding.of(F.pad(mask, (memory, 0), value=True), h.device)
        modulation = self.global_cond_embedder(global_cond)
        for index, layer in enumerate(self.layers):
            if index < self.num_checkpointed and torch.is_grad_enabled():
                h = checkpoint(
                    layer, h, context, modulation, local, rotation, layout, use_reentrant=False
                )
            else:
                h = layer(h, context, modulation, local, rotation, layout)
        frames = layout.frames(h) if isinstance(layout, Packing) else h[:, memory:]
        out: Tensor = self.project_out(frames)
        return out


class DiffusionTransformer(nn.Module):
    """Predict the velocity `noise - data` of noisy latents."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        dim, channels = config.embed_dim, config.io_channels
        self.timestep_features = FourierFeatures(config.timestep_features_dim)
        self.to_timestep_embed = two_layer(config.timestep_features_dim, dim, dim, bias=True)
        self.to_cond_embed = two_layer(config.cond_token_dim, dim, dim, bias=False)
        self.to_global_embed = two_layer(config.global_cond_dim, dim, dim, bias=False)
        self.preprocess_conv = nn.Conv1d(channels, channels, 1, bias=False)
        self.postprocess_conv = nn.Conv1d(channels, channels, 1, bias=False)
        self.transformer = Transformer(config)
        self._zero_branches()

    def _zero_branches(self) -> None:
        """Start residual branches at zero, as the released models were initialised."""
        with torch.no_grad():
            self.preprocess_conv.weight.zero_()
            self.postprocess_conv.weight.zero_()
            for layer in self.transformer.layers:
                assert isinstance(layer, Block)
                layer.self_attn.to_out.weight.zero_()
                layer.cross_attn.to_out.weight.zero_()
                for branch in (layer.ff.ff, layer.to_local_embed):
                    for parameter in branch[2].parameters():
                        parameter.zero_()

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether every block is recomputed in the backward pass."""
        return self.transformer.num_checkpointed == len(self.transformer.layers)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.set_recomputation(num_blocks=len(self.transformer.layers) if value else 0)

    def set_recomputation(self, *, num_blocks: int, frugal: bool = False) -> None:
        """Choose what the backward pass makes again instead of keeping it; results stay the same.

        Args:
            num_blocks: So many blocks keep their input alone.
            frugal: The others keep outputs of matrix products alone.
        """
        self.transformer.num_checkpointed = num_blocks
        for index, layer in enumerate(self.transformer.layers):
            assert isinstance(layer, Block)
            # inside a recomputed block the hooks of `remade` would keep its sources alive
            layer.be_frugal(frugal and index >= num_blocks)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        cross: Tensor,
        global_cond: Tensor,
        local: Tensor,
        mask: Tensor | Packing | None = None,
    ) -> Tensor:
        """Return the velocity, (B, C, T), in the parameters' dtype.

        `t` and the duration keep float32 until after their Fourier features; rounding them to a
        half type before would destroy the conditioning.

        Args:
            x: Noisy latents, (B, C, T).
            t: Noise level, (B,), 0 is data and 1 is noise.
            cross: Prompt and duration tokens, (B, L, cond_token_dim).
            global_cond: Duration embedding, (B, global_cond_dim).
            local: Inpaint mask and masked latents, (B, 1 + C, T).
            mask: True on real frames, (B, T); best on the host, where it is read without waiting
                for a GPU. Velocity at padded frames means nothing. A packing instead says where
                the clips lie in frames (1, C, all), and `local` likewise.
        """
        dtype = self.transformer.memory_tokens.dtype
        x, cross, global_cond, local = (y.to(dtype) for y in (x, cross, global_cond, local))
        context = self.to_cond_embed(cross)
        features = self.timestep_features(t.float()).to(dtype)
        embedding = self.to_global_embed(global_cond) + self.to_timestep_embed(features)
        x = self.preprocess_conv(x) + x
        h: Tensor = self.transformer(
            x.transpose(1, 2), context, embedding, local.transpose(1, 2), mask
        )
        out: Tensor = h.transpose(1, 2)
        velocity: Tensor = self.postprocess_conv(out) + out
        return velocity
