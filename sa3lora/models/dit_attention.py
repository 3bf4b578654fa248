"""Self- and cross-attention of the diffusion transformer, one map or the difference of two."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sa3lora.models.attention import Padding, attention, packed_attention
from sa3lora.models.config import DitConfig
from sa3lora.models.layers import RmsNorm, rotate
from sa3lora.models.packed import Packing
from sa3lora.models.recompute import remade

Rotation = tuple[Tensor, Tensor]
#: Which positions exist: all, the real ones of padded rows, or clips packed end to end.
Layout = Padding | Packing | None


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, H d) to (B, H, S, d)."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, S, d) to (B, S, H d)."""
    return x.transpose(1, 2).flatten(2)


class _Attention(nn.Module):
    """What both kinds share; a differential model has its second map beside the first, as heads.

    Attributes:
        frugal: Make heads and norms again in the backward pass instead of keeping them.
    """

    def _add_shared(self, config: DitConfig) -> None:
        self.heads, self.differential = config.num_heads, config.differential
        self.frugal = False
        self.to_out = nn.Linear(config.embed_dim, config.embed_dim, bias=False)
        self.q_norm = RmsNorm(config.head_dim, eps=1e-6, float32=False)
        self.k_norm = RmsNorm(config.head_dim, eps=1e-6, float32=False)

    def _split(self, *parts: Tensor) -> Tensor:
        heads = [split_heads(part, self.heads) for part in parts]
        return torch.cat(heads, 1) if len(heads) > 1 else heads[0]

    def _normed(self, gamma: Tensor, *parts: Tensor) -> Tensor:
        return self.q_norm.scaled(self._split(*parts), gamma)

    def _turned(self, cos: Tensor, sin: Tensor, gamma: Tensor, *parts: Tensor) -> Tensor:
        return rotate(self._normed(gamma, *parts), (cos, sin))

    def _merged(self, out: Tensor) -> Tensor:
        if self.differential:
            first, second = out.chunk(2, dim=1)
            out = first - second
        return merge_heads(out)

    def _project(self, out: Tensor) -> Tensor:
        with remade(self._merged, out, when=self.frugal) as merged:
            projected: Tensor = self.to_out(merged)
        return projected


class SelfAttention(_Attention):
    """Self-attention over memory tokens and frames; differential models subtract a second map."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.to_qkv = nn.Linear(dim, (5 if config.differential else 3) * dim, bias=False)
        self._add_shared(config)

    def forward(self, x: Tensor, rotation: Rotation, layout: Layout) -> Tensor:
        """Attend (B, S, D) to itself; positions outside `layout` are as if absent."""
        parts = self.to_qkv(x).chunk(5 if self.differential else 3, dim=-1)
        queries, keys, values = parts[0::3], parts[1::3], [parts[2]] * len(parts[0::3])
        gain_q, gain_k = self.q_norm.gamma, self.k_norm.gamma
        with (
            remade(self._turned, *rotation, gain_q, *queries, when=self.frugal) as query,
            remade(self._turned, *rotation, gain_k, *keys, when=self.frugal) as key,
            remade(self._split, *values, when=self.frugal and self.differential) as value,
        ):
            if isinstance(layout, Packing):
                spans = layout.tokens
                out = packed_attention(query, key, value, queries=spans, keys=spans)
            else:
                out = attention(query, key, value, layout)
        return self._project(out)


class CrossAttention(_Attention):
    """Attention from frames to prompt and duration tokens; never masked, as released."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.to_q = nn.Linear(dim, (2 if config.differential else 1) * dim, bias=False)
        self.to_kv = nn.Linear(dim, (3 if config.differential else 2) * dim, bias=False)
        self._add_shared(config)

    def forward(self, x: Tensor, context: Tensor, layout: Layout = None) -> Tensor:
        """Attend from (B, S, D), or packed (1, S, D), to (B, L, D)."""
        packed = layout if isinstance(layout, Packing) else None
        # A node of its own in each block, where the gradients of its branches are added up before
        # those of other blocks. FSDP2 makes one anyway, and half types round by the order of a sum.
        context = context.view_as(context) if packed is None else context.flatten(0, 1)[None]
        queries = self.to_q(x).chunk(2 if self.differential else 1, dim=-1)
        *keys, last = self.to_kv(context).chunk(3 if self.differential else 2, dim=-1)
        values = [last] * len(keys)
        with (
            remade(self._normed, self.q_norm.gamma, *queries, when=self.frugal) as query,
            remade(self._normed, self.k_norm.gamma, *keys, when=self.frugal) as key,
            remade(self._split, *values, when=self.frugal and self.differential) as value,
        ):
            if packed is None:
                out = attention(query, key, value)
            else:
                spans, contexts = packed.tokens, packed.contexts
                out = packed_attention(query, key, value, queries=spans, keys=contexts)
        return self._project(out)
