"""Times at which a sampler calls the model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .shifts import SAMPLING_DEFAULT, shift


def make_schedule(
    steps: int,
    *,
    length: Tensor | int,
    sigma_max: float = 1.0,
    options: Mapping[str, Any] | None = SAMPLING_DEFAULT,
) -> Tensor:
    """Lay `steps` + 1 falling times from `sigma_max` to 0.

    Only the first time is pinned to `sigma_max`. The others are warped from an even grid, so that
    with `sigma_max` below 1 the second can lie above the first: the released models do that too.

    Args:
        steps: Model steps, at least 1.
        length: Latent frames: one number gives one schedule for a batch, a tensor (B,) a row for
            each clip. Below 1 counts as 1.
        sigma_max: Noise to start from, 1 without init audio.
        options: A shift as `shift` takes it.

    Returns:
        (steps + 1,) or (B, steps + 1), float32.

    Raises:
        ValueError: If `steps` is below 1 or `sigma_max` outside [0, 1].
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= sigma_max <= 1:
        raise ValueError(f"sigma_max must lie in [0, 1], got {sigma_max}")
    if isinstance(length, Tensor):
        frames = length.reshape(-1, 1).float().clamp(min=1)
        t = torch.linspace(sigma_max, 0, steps + 1, device=length.device).expand(len(frames), -1)
        times = shift(t, frames, options=options).clone()
    else:
        t = torch.linspace(sigma_max, 0, steps + 1)
        times = shift(t, max(length, 1), options=options).clone()
    times[..., 0] = sigma_max
    return times
