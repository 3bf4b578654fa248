"""Fourier features of scalars (flow time, seconds)."""

import math
from functools import lru_cache

import torch
from torch import Tensor

MIN_FREQUENCY = 0.5
MAX_FREQUENCY = 10_000.0


def expo_frequencies(dim: int) -> Tensor:
    """Give the `dim / 2` frequencies of the features, in cycles over [0, 1], float32."""
    low, high = math.log(MIN_FREQUENCY), math.log(MAX_FREQUENCY)
    ramp = torch.linspace(0, 1, dim // 2, dtype=torch.float32)
    return torch.exp(ramp * (high - low) + low)


def expo_fourier_features(x: Tensor, dim: int) -> Tensor:
    """Expand scalars into cosines and sines of exponentially spaced frequencies.

    Computed in float32 in the order of the released models: frequencies reach 10 000, so that
    multiplying by 2 pi first would turn an angle by up to 4e-3 rad, and a scalar that was ever
    rounded to half precision gives other features altogether.

    Args:
        x: Scalars in [0, 1], (B,).
        dim: Width of the result, even and at least 4.

    Returns:
        `[cos, sin]` of `dim / 2` frequencies each, (B, dim), float32.

    Raises:
        ValueError: If `dim` is odd or below 4.
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"dim must be an even number of at least 4, got {dim}")
    angles = x.float()[:, None] * _frequencies_on(x.device, dim) * 2 * math.pi
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@lru_cache
def _frequencies_on(device: torch.device, dim: int) -> Tensor:
    # Sent once, as a GPU would be waited for each time; made on the host, whose digits they have.
    with torch.inference_mode(False):
        return expo_frequencies(dim).to(device)
