"""Making cheap tensors again in the backward pass instead of keeping them.

Norms, modulation, rotary positions and gates cost next to nothing beside matrix products, but what
they make is as large. A tensor from `remade` is thrown away after its use; whoever needs it in the
backward pass makes it again from its sources, which are kept anyway as outputs of products. The
operations are the same and so are values; gradients are, but for the order in which several of one
tensor are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

Make = Callable[..., Tensor]
# Values of the blocks of code that are being run.
_AROUND: ContextVar[tuple[_Mark, ...]] = ContextVar("around", default=())


def remade(make: Make, *sources: Tensor, when: bool) -> AbstractContextManager[Tensor]:
    """Give `make(*sources)` to a block of code that keeps how it was made instead of it.

    Args:
        make: Elementwise or about as cheap, deterministic, with one output. Everything that it
            differentiates must be among the sources.
        sources: What it is made from.
        when: Whether to; otherwise, and where no gradient is asked for, it is an ordinary value.
    """
    if when and torch.is_grad_enabled() and any(source.requires_grad for source in sources):
        return _remade(make, *sources)
    return nullcontext(make(*sources))


@contextmanager
def _remade(make: Make, *sources: Tensor) -> Iterator[Tensor]:
    again = _Again(make, sources)
    value: Tensor = _Remade.apply(again, *sources)  # type: ignore[no-untyped-call]
    # of nested hooks only the innermost pair is called, so it has to know all values around it
    marks = (*_AROUND.get(), _Mark.of(value, again))

    def pack(tensor: Tensor) -> Tensor | _Recipe:
        return next((_Recipe(m.again, tensor.shape) for m in marks if m.fits(tensor)), tensor)

    token = _AROUND.set(marks)
    try:
        with saved_tensors_hooks(pack, _unpack):
            yield value
    finally:
        _AROUND.reset(token)


def _unpack(kept: Tensor | _Recipe) -> Tensor:
    return kept.follow() if isinstance(kept, _Recipe) else kept


class _Again:
    """How a tensor is made, with the type that autocast had then.

    The backward pass asks twice: whoever used the tensor for its value, then the tensor's own
    gradient for the graph. It is made once for both.
    """

    def __init__(self, make: Make, sources: tuple[Tensor, ...]) -> None:
        self._make = make
        self._sources = tuple(source.detach() for source in sources)
        self._needed = tuple(source.requires_grad for source in sources)
        self._autocast = _autocast_of(sources[0])
        self._made: tuple[list[Tensor], Tensor] | None = None

    def first(self) -> Tensor:
        """Give the value alone."""
        return self._make(*self._sources)

    def value(self) -> Tensor:
        """Give the value in the backward pass."""
        return self._graph()[1].detach()

    def differentiate(self, grad: Tensor) -> list[Tensor | None]:
        """Give the gradients of the sources, and let go of what was made."""
        sources, value = self._graph()
        self._made = None
        wanted = [source for source in sources if source.requires_grad]
        found = iter(torch.autograd.grad(value, wanted, grad))
        return [next(found) if source.requires_grad else None for source in sources]

    def _graph(self) -> tuple[list[Tensor], Tensor]:
        if self._made is None:
            device = self._sources[0].device.type
            dtype = self._autocast or torch.get_autocast_dtype(device)
            with (
                torch.enable_grad(),
                torch.autocast(device, dtype, enabled=self._autocast is not None),
            ):
                sources = [
                    source.detach().requires_grad_(needed)
                    for source, needed in zip(self._sources, self._needed, strict=True)
                ]
                self._made = sources, self._make(*sources)
        return self._made


@dataclass(frozen=True)
class _Mark:
    """How to know a value again without holding it: the graph keeps the hooks that hold this."""

    again: _Again
    pointer: int
    size: int
    dtype: torch.dtype

    @classmethod
    def of(cls, value: Tensor, again: _Again) -> _Mark:
        # a value with gaps is never taken for anything
        size = value.numel() if value.is_contiguous() else -1
        return cls(again, value.data_ptr(), size, value.dtype)

    def fits(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is the value in some shape; nobody writes into values here."""
        same = tensor.data_ptr() == self.pointer and tensor.numel() == self.size
        return same and tensor.dtype == self.dtype and tensor.is_contiguous()


@dataclass(frozen=True)
class _Recipe:
    again: _Again
    shape: torch.Size

    def follow(self) -> Tensor:
        return self.again.value().view(self.shape)


class _Remade(torch.autograd.Function):
    """Runs a function without its graph, and with it in the backward pass."""

    @staticmethod
    def forward(ctx: Any, again: _Again, *sources: Tensor) -> Tensor:
        ctx.again = again
        return again.first()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        again: _Again = ctx.again
        ctx.again = None  # the graph may live on; what it kept need not
        return (None, *again.differentiate(grads[0]))


def _autocast_of(tensor: Tensor) -> torch.dtype | None:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
