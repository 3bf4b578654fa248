"""The diffusion transformer of Stable Audio 3, with the published key names."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sa3lora.models.attention import attention, packed_attention
from sa3lora.models.config import DitConfig
from sa3lora.models.layers import (
    FeedForward,
    FourierFeatures,
    RmsNorm,
    RotaryEmbedding,
    rotate,
    two_layer,
)
from sa3lora.models.packed import Packing

Rotation = tuple[Tensor, Tensor]
#: Which positions exist: all, those where a mask (B, S) is True, or clips packed end to end.
Layout = Tensor | Packing | None


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, H d) to (B, H, S, d)."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, S, d) to (B, S, H d)."""
    return x.transpose(1, 2).flatten(2)


def _only(x: Tensor, layout: Layout) -> Tensor:
    """Zero what padded positions (B, S) would add, as the official packed kernels do."""
    return x * layout[..., None].to(x.dtype) if isinstance(layout, Tensor) else x


class SelfAttention(nn.Module):
    """Self-attention over memory tokens and frames; differential models subtract a second map."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.heads, self.differential = config.num_heads, config.differential
        self.to_qkv = nn.Linear(dim, (5 if self.differential else 3) * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.q_norm = RmsNorm(config.head_dim, eps=1e-6, float32=False)
        self.k_norm = RmsNorm(config.head_dim, eps=1e-6, float32=False)

    def forward(self, x: Tensor, rotation: Rotation, layout: Layout) -> Tensor:
        """Attend (B, S, D) to itself; positions outside `layout` are as if absent."""
        projected = self.to_qkv(x).chunk(5 if self.differential else 3, dim=-1)
        parts = [split_heads(part, self.heads) for part in projected]
        query, key, value = parts[:3]
        if self.differential:  # both maps in one call, side by side as heads
            query, key = torch.cat([query, parts[3]], 1), torch.cat([key, parts[4]], 1)
            value = torch.cat([value, value], 1)
        query = rotate(self.q_norm(query), rotation)
        key = rotate(self.k_norm(key), rotation)
        if isinstance(layout, Packing):
            spans = layout.tokens
            out = packed_attention(query, key, value, queries=spans, keys=spans)
        else:
            out = attention(query, key, value, layout)
        if self.differential:
            first, second = out.chunk(2, dim=1)
            out = first - second
        merged: Tensor = self.to_out(merge_heads(out))
        return merged


class CrossAttention(nn.Module):
    """Attention from frames to prompt and duration tokens; never masked, as released."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.heads, self.differential = config.num_heads, config.differential
        self.to_q = nn.Linear(dim, (2 if self.differential else 1) * dim, bias=False)
        self.to_kv = nn.Linear(dim, (3 if self.differential else 2) * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.q_norm = RmsNorm(config.head_dim, eps=1e-6, float32=False)
        self.k_norm = RmsNorm(config.head_dim, eps=1e-6, float32=False)

    def forward(self, x: Tensor, context: Tensor, layout: Layout = None) -> Tensor:
        """Attend from (B, S, D), or packed (1, S, D), to (B, L, D)."""
        packed = layout if isinstance(layout, Packing) else None
        if packed is not None:
            context = context.flatten(0, 1)[None]
        queries = self.to_q(x).chunk(2 if self.differential else 1, dim=-1)
        *keys, value = self.to_kv(context).chunk(3 if self.differential else 2, dim=-1)
        query = torch.cat([split_heads(q, self.heads) for q in queries], dim=1)
        key = torch.cat([split_heads(k, self.heads) for k in keys], dim=1)
        values = torch.cat([split_heads(value, self.heads)] * len(keys), dim=1)
        query, key = self.q_norm(query), self.k_norm(key)
        if packed is None:
            out = attention(query, key, values)
        else:
            spans, contexts = packed.tokens, packed.contexts
            out = packed_attention(query, key, values, queries=spans, keys=contexts)
        if self.differential:
            first, second = out.chunk(2, dim=1)
            out = first - second
        merged: Tensor = self.to_out(merge_heads(out))
        return merged


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
            layout: True on memory tokens and real frames, (B, S), or where packed clips lie.
        """
        changes = (self.to_scale_shift_gate + modulation).chunk(6, dim=-1)
        packed = layout if isinstance(layout, Packing) else None
        scale1, shift1, gate1, scale2, shift2, gate2 = (
            each.unsqueeze(1) if packed is None else packed.spread(each) for each in changes
        )
        h = self.pre_norm(x) * (1 + scale1) + shift1
        x = x + torch.sigmoid(1 - gate1) * _only(self.self_attn(h, rotation, layout), layout)
        x = x + self.cross_attn(self.cross_attend_norm(x), context, layout)
        # memory tokens come first and get no local conditioning
        given = self.to_local_embed(local)
        if packed is None:
            x = x + F.pad(given, (0, 0, x.shape[1] - local.shape[1], 0))
        else:
            x = x + packed.at_frames(given)
        h = self.ff_norm(x) * (1 + scale2) + shift2
        return x + torch.sigmoid(1 - gate2) * _only(self.ff(h), layout)


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
        self.gradient_checkpointing = False

    def forward(
        self, x: Tensor, context: Tensor, global_cond: Tensor, local: Tensor, layout: Layout
    ) -> Tensor:
        """Run all blocks on (B, T, C); `local` is (B, T, 1 + C) and a mask (B, T)."""
        batch, memory = x.shape[0], self.memory_tokens.shape[0]
        if isinstance(layout, Packing):
            h = layout.with_memory(self.project_in(x), self.memory_tokens)
            rotation = layout.rotation(self.rotary_pos_emb)
        else:
            h = torch.cat([self.memory_tokens.expand(batch, -1, -1), self.project_in(x)], dim=1)
            rotation = self.rotary_pos_emb(h.shape[1])
            if layout is not None:
                layout = F.pad(layout, (memory, 0), value=True)
        modulation = self.global_cond_embedder(global_cond)
        for layer in self.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
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
        """Whether blocks are recomputed in the backward pass."""
        return self.transformer.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.transformer.gradient_checkpointing = value

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        cross: Tensor,
        global_cond: Tensor,
        local: Tensor,
        mask: Layout = None,
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
            mask: True on real frames, (B, T). Velocity at padded frames means nothing. A packing
                instead says where the clips lie in frames (1, C, all), and `local` likewise.
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
