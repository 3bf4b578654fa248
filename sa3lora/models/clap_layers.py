"""Layers that both towers of the small CLAP are built from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A pre-norm transformer block; False in `mask` means that the token is absent."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.ff = nn.Sequential(nn.Linear(dim, 3 * dim), nn.GELU(), nn.Linear(3 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Transform (B, L, D)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        heads = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask[:, None, None]
        )
        x = x + self.dropout(self.out(heads.transpose(1, 2).flatten(2)))
        result: Tensor = x + self.dropout(self.ff(self.norm2(x)))
        return result


class ConvBlock(nn.Module):
    """Convolution over (mel, time), strided; one group a channel after the first.

    The norm looks at single positions only, so that neither length nor padding matters.
    """

    def __init__(self, inner: int, outer: int, *, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.spatial = nn.Conv2d(inner, max(inner, 8), 3, stride=stride, padding=1, groups=inner)
        self.pointwise = nn.Conv2d(max(inner, 8), outer, 1)
        self.gain = nn.Parameter(torch.ones(outer, 1, 1))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve (B, C, M, T); gives the mask (B, T) at the new frame rate too."""
        mask = mask[:, :: self.stride[1]]
        x = self.pointwise(self.spatial(x))
        x = x * (x.square().mean(dim=1, keepdim=True) + 1e-3).rsqrt() * self.gain
        return F.gelu(x) * mask[:, None, None], mask


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average (B, L, D) over the positions where `mask` (B, L) is True."""
    weights = mask[..., None].to(x.dtype)
    mean: Tensor = (x * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
    return mean
