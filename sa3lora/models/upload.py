"""Copies to a GPU that the host does not wait for.

A plain copy from the host's memory waits until the GPU has done everything that was asked of it
before. What trains copies with `upload` alone: lengths, masks and draws are made on the host, read
there, and sent.
"""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Give a tensor where a device can use it; one that lies there already is itself."""
    # Elsewhere than on CUDA the copy would not wait for the host to be done with its memory.
    return pinned(tensor, device).to(device, non_blocking=device.type == "cuda")


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Put a tensor of the host where CUDA fetches it from by itself; others are left alone."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        return tensor.pin_memory()
    return tensor
