"""Low-rank changes that run beside a layer, for weights too coarse to fold into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class LowRankBranch:
    """Adds `B A x` in float32 to what a layer gives, until it is removed.

    Args:
        layer: A linear layer or an ungrouped 1-D convolution.
        factors: (A, B) of each adapter, float32, scale and strength included.
    """

    def __init__(self, layer: nn.Module, factors: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Attach to the layer at once."""
        # One pair of summed rank: equal to running them one after the other.
        self._down = torch.cat([down for down, _ in factors])  # (r, fan_in)
        self._up = torch.cat([up for _, up in factors], dim=1)  # (fan_out, r)
        self._handle = layer.register_forward_hook(self._hook)

    def remove(self) -> None:
        """Detach; the layer then gives exactly what it gave before."""
        self._handle.remove()

    def _hook(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        source = args[0].float()
        down, up = self._down.to(source.device), self._up.to(source.device)
        if isinstance(layer, nn.Conv1d):
            kernel = down.reshape(down.shape[0], layer.in_channels, *layer.kernel_size)
            hidden = layer._conv_forward(source, kernel, None)
            change = functional.conv1d(hidden, up[:, :, None])
        else:
            change = functional.linear(functional.linear(source, down), up)
        return (output.float() + change).to(output.dtype)
