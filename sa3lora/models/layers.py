"""Small building blocks that the diffusion transformer and the SAME autoencoder share.

Attribute names follow the published checkpoints, because they are the keys of the weight files.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sa3lora.flow.features import expo_fourier_features
from sa3lora.models.recompute import remade

#: The sine gate of SAME-L was trained with this truncated constant.
_SINE_GATE = 3.14159265359


class RmsNorm(nn.Module):
    """Scale features to unit root mean square, in float32 when `float32` is set."""

    def __init__(self, dim: int, *, eps: float = 1e-5, float32: bool = True) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.float32 = float32

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; keeps the dtype."""
        return self.scaled(x, self.gamma)

    def scaled(self, x: Tensor, gamma: Tensor) -> Tensor:
        """Normalise the last dimension with a gain that is given."""
        if self.float32:
            return F.rms_norm(x.float(), x.shape[-1:], gamma.float(), self.eps).to(x.dtype)
        return F.rms_norm(x, x.shape[-1:], gamma.to(x.dtype), self.eps)


class DynamicTanh(nn.Module):
    """Norm-free normalisation `gamma * tanh(alpha * x) + beta` (Zhu et al., 2025)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 4.0))
        self.gamma = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise feature by feature."""
        return self.gamma * torch.tanh(self.alpha * x) + self.beta


class RotaryEmbedding(nn.Module):
    """Rotary positions for the first half of each head (at least 32 channels)."""

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inverse_frequencies(head_dim))

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, each (length, rotary channels / 2), float32."""
        positions = torch.arange(length, device=self.inv_freq.device, dtype=torch.float32)
        angles = positions[:, None] * self.inv_freq.float()
        return angles.cos(), angles.sin()


def inverse_frequencies(head_dim: int) -> Tensor:
    """Rotation speeds of the rotary pairs, radians a position."""
    width = max(head_dim // 2, 32)
    return torch.pow(10000.0, -torch.arange(0, width, 2).float() / width)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate channel pairs (i, i + n) of `x` (..., S, head_dim) in float32; keep its dtype."""
    cos, sin = rotation
    n = cos.shape[-1]
    first, second = x[..., :n].float(), x[..., n : 2 * n].float()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([turned.to(x.dtype), x[..., 2 * n :]], dim=-1)


class _Gate(nn.Module):
    def __init__(self, dim: int, inner: int, *, sine: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)
        self.sine = sine

    def forward(self, x: Tensor) -> Tensor:
        return self.gated(self.proj(x))

    def gated(self, projected: Tensor) -> Tensor:
        value, gate = projected.chunk(2, dim=-1)
        opened = torch.sin(_SINE_GATE * gate) if self.sine else F.silu(gate)
        # the widest tensors of a block: without a graph one of them is enough
        return value * opened if torch.is_grad_enabled() else opened.mul_(value)


class FeedForward(nn.Module):
    """Gated feed-forward layer; the second half of the projection is the gate."""

    def __init__(self, dim: int, *, mult: float, sine: bool = False) -> None:
        super().__init__()
        inner = int(dim * mult)
        self.frugal = False  # make the gate's result again in the backward pass
        self.ff = nn.Sequential(_Gate(dim, inner, sine=sine), nn.Identity(), nn.Linear(inner, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to the same shape."""
        gate = self.ff[0]
        assert isinstance(gate, _Gate)
        with remade(gate.gated, gate.proj(x), when=self.frugal) as inner:
            out: Tensor = self.ff[2](inner)
        return out

    @property
    def last(self) -> nn.Linear:
        """The layer that writes to the residual stream."""
        layer = self.ff[2]
        assert isinstance(layer, nn.Linear)
        return layer


class FourierFeatures(nn.Module):
    """Float32 Fourier features of one number an item; the caller casts them afterwards."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, value: Tensor) -> Tensor:
        """Map (B,) to (B, dim), float32."""
        return expo_fourier_features(value, self.dim)


class WeightNormConv1d(nn.Module):
    """1-D convolution with the legacy weight-norm parameters `weight_g`, `weight_v`, `bias`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_channels * kernel_size)
        shape = (out_channels, in_channels, kernel_size)
        self.weight_v = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.weight_g = nn.Parameter(self.weight_v.detach().norm(dim=(1, 2), keepdim=True))
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound))
        self.padding = kernel_size // 2

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, N); the length stays."""
        norm = self.weight_v.norm(dim=(1, 2), keepdim=True)
        weight = self.weight_g * self.weight_v / norm
        return F.conv1d(x, weight, self.bias, padding=self.padding)


def two_layer(in_dim: int, dim: int, out_dim: int, *, bias: bool) -> nn.Sequential:
    """Linear, SiLU, Linear: the embedding network used throughout."""
    return nn.Sequential(
        nn.Linear(in_dim, dim, bias=bias), nn.SiLU(), nn.Linear(dim, out_dim, bias=bias)
    )
