"""Change the rate and the channels of audio in memory."""

from __future__ import annotations

import numpy as np
import soxr
import torch
from torch import Tensor


def resample(audio: Tensor, orig: int, new: int) -> Tensor:
    """Change the sample rate (soxr, HQ).

    Args:
        audio: (K, N) on the CPU.
        orig: Its rate.
        new: The rate wanted.

    Returns:
        (K, about N * new / orig), float32; the input itself when the rates are equal.
    """
    if orig == new:
        return audio
    result = soxr.resample(audio.float().numpy().T, orig, new, quality="HQ")
    return torch.from_numpy(np.ascontiguousarray(result.T))


def to_channels(audio: Tensor, k: int) -> Tensor:
    """Convert the number of channels as the official code does.

    Args:
        audio: (K, N).
        k: 1 takes the mean; 2 repeats a mono signal, and keeps the first two of more.

    Returns:
        (k, N).

    Raises:
        ValueError: For any other pair of counts.
    """
    have = audio.shape[0]
    if have == k:
        return audio
    if k == 1:
        return audio.mean(dim=0, keepdim=True)
    if k == 2:
        return audio.expand(2, -1).contiguous() if have == 1 else audio[:2]
    raise ValueError(f"cannot make {k} channels of {have}: only 1 and 2 are defined")
