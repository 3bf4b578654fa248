"""Making cheap tensors again in the backward pass instead of keeping them.

Norms, modulation, rotary positions and gates cost next to nothing beside matrix products, but what
they make is as large. A tensor from `remade` is thrown away after its use; whoever needs it in the
backward pass makes it again from its sources, which are kept anyway as outputs of products. The
operations are the same and so are values; gradients are, but for the order in which several of one
tensor are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

Make = Callable[..., Tensor]


@contextmanager
def remade(make: Make, *sources: Tensor, when: bool) -> Iterator[Tensor]:
    """Give `make(*sources)` to a block of code that keeps how it was made instead of it.

    Args:
        make: Elementwise or about as cheap, deterministic, with one output. Everything that it
            differentiates must be among the sources.
        sources: What it is made from.
        when: Whether to; otherwise, and where no gradient is asked for, it is an ordinary value.
    """
    if not (when and torch.is_grad_enabled() and any(s.requires_grad for s in sources)):
        yield make(*sources)
        return
    again = _Again(make, tuple(source.detach() for source in sources), _autocast_of(sources[0]))
    value: Tensor = _Remade.apply(again, *sources)  # type: ignore[no-untyped-call]
    # the same memory is the same value: nothing here writes into what it was given
    pointer, size = value.data_ptr(), value.numel()
    whole = value.is_contiguous()

    def pack(tensor: Tensor) -> Tensor | _Recipe:
        same = tensor.data_ptr() == pointer and tensor.numel() == size and tensor.is_contiguous()
        return _Recipe(again, tensor.shape) if whole and same else tensor

    def unpack(kept: Tensor | _Recipe) -> Tensor:
        return kept.follow() if isinstance(kept, _Recipe) else kept

    with saved_tensors_hooks(pack, unpack):
        yield value


@dataclass(frozen=True)
class _Again:
    """How a tensor is made, with the type that autocast had then."""

    make: Make
    sources: tuple[Tensor, ...]
    autocast: torch.dtype | None

    def __call__(self, *sources: Tensor) -> Tensor:
        device = self.sources[0].device.type
        dtype = self.autocast or torch.get_autocast_dtype(device)
        with torch.autocast(device, dtype, enabled=self.autocast is not None):
            return self.make(*sources)


@dataclass(frozen=True)
class _Recipe:
    again: _Again
    shape: torch.Size

    def follow(self) -> Tensor:
        with torch.no_grad():
            return self.again(*self.again.sources).view(self.shape)


class _Remade(torch.autograd.Function):
    """Runs a function without its graph, and with it in the backward pass."""

    @staticmethod
    def forward(ctx: Any, again: _Again, *sources: Tensor) -> Tensor:
        ctx.again = again
        return again(*sources)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        again: _Again = ctx.again
        needed = ctx.needs_input_grad[1:]
        with torch.enable_grad():
            sources = [
                source.detach().requires_grad_(wanted)
                for source, wanted in zip(again.sources, needed, strict=True)
            ]
            value = again(*sources)
        wanted = [source for source in sources if source.requires_grad]
        found = iter(torch.autograd.grad(value, wanted, grads[0]))
        ctx.again = None  # the graph may live on; what it kept need not
        return (None, *(next(found) if need else None for need in needed))


def _autocast_of(tensor: Tensor) -> torch.dtype | None:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
