"""One transformer block of SAME: attention in chunks or in a band, then a feed-forward layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sa3lora.models.attention import band_attention
from sa3lora.models.config import ResamplingConfig
from sa3lora.models.dit_attention import merge_heads, split_heads
from sa3lora.models.layers import DynamicTanh, FeedForward, RotaryEmbedding, rotate

# glibc gives arrays above 32 MiB back to the system at once, and getting new pages for the next
# one took a fifth of the time; below it they are used again
_SLICE_BYTES = 24 * 2**20


class DifferentialAttention(nn.Module):
    """Difference of two attention maps over the same values."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.heads = dim // head_dim
        self.to_qkv = nn.Linear(dim, 5 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.q_norm = DynamicTanh(head_dim)
        self.k_norm = DynamicTanh(head_dim)
        nn.init.zeros_(self.to_out.weight)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], window: int | None) -> Tensor:
        """Attend (B, N, E) to itself, at most `window` tokens away, or everywhere."""
        q, k, v, q2, k2 = (split_heads(p, self.heads) for p in self.to_qkv(x).chunk(5, dim=-1))
        query = rotate(self.q_norm(torch.cat([q, q2], dim=1)), rotation)
        key = rotate(self.k_norm(torch.cat([k, k2], dim=1)), rotation)
        value = torch.cat([v, v], dim=1)
        if window is None:
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            out = band_attention(query, key, value, window=window)
        first, second = out.chunk(2, dim=1)
        merged: Tensor = self.to_out(merge_heads(first - second))
        return merged


class SameBlock(nn.Module):
    """Attention and feed-forward, both residual, without adaptive modulation.

    On a CPU a long input is taken in slices, which changes nothing but the time.
    """

    self_attn: DifferentialAttention
    ff: FeedForward

    def __init__(self, config: ResamplingConfig, *, sine: bool) -> None:
        super().__init__()
        self.pre_norm = DynamicTanh(config.width)
        self.self_attn = DifferentialAttention(config.width, config.dim_heads)
        self.ff_norm = DynamicTanh(config.width)
        self.ff = FeedForward(config.width, mult=config.ff_mult, sine=sine)
        self.rope = RotaryEmbedding(config.dim_heads)
        self.widest = max(5, 2 * config.ff_mult) * config.width
        for parameter in self.ff.ff[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, window: int | None) -> Tensor:
        """Return the block's output, (B, S, E); `window` as in `band_attention`, None is all."""
        rotation = self.rope(x.shape[1])
        batch, length = x.shape[:2]
        most = batch * length
        if x.device.type == "cpu":
            most = _SLICE_BYTES // (self.widest * x.element_size())
        if window is None:
            parts = torch.split(x, max(most // length, 1))
            return _joined([self._run(part, rotation, None) for part in parts], dim=0)
        size = max(most // batch - 2 * window, 4 * window)
        starts = range(0, length, size)
        slices = [self._run_slice(x, rotation, window, start=s, stop=s + size) for s in starts]
        return _joined(slices, dim=1)

    def _run(self, x: Tensor, rotation: tuple[Tensor, Tensor], window: int | None) -> Tensor:
        return self._feed(x + self.self_attn(self.pre_norm(x), rotation, window))

    def _run_slice(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], window: int, *, start: int, stop: int
    ) -> Tensor:
        """Run tokens `start` to `stop` among the neighbours that they see."""
        low = max(start - window, 0)
        seen = slice(low, stop + window)
        near = (rotation[0][seen], rotation[1][seen])
        change = self.self_attn(self.pre_norm(x[:, seen]), near, window)
        return self._feed(x[:, start:stop] + change[:, start - low : stop - low])

    def _feed(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.ff(self.ff_norm(x))
        return out


def _joined(parts: list[Tensor], *, dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
