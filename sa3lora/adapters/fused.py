"""One linear layer with its low-rank change as one step of the graph.

    y = diag(g) (W x + s B A x) + b

PEFT's own branch makes four tensors of the size of the output forward and two backward, and keeps
what autograd asks for. Here the change is added into the output of the base in place, no gradient
of W is ever formed, and only the input is kept; of a layer with magnitudes the output too, which
its successor keeps anyway. A weight that is held in few bits is made again for each product, and
kept in those bits alone.

At g = 1 and B = 0 the output is the base layer's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


class Form(Protocol):
    """How tensors that hold a matrix otherwise, say in few bits, become that matrix."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""

    def matrix(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Make the matrix in a type."""


def low_rank_linear(
    x: Tensor,
    weight: Tensor | tuple[Form, Sequence[Tensor]],
    bias: Tensor | None,
    *,
    down: Tensor,
    up: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """Give what a frozen linear layer with a low-rank change gives.

    Under autocast its type computes, and A and B are converted once a call; else the type of `x`
    does. The gradients of A, B and g are float32 whatever computes.

    Args:
        x: Input, (..., fan_in).
        weight: W, frozen, (fan_out, fan_in), or what holds it and how it becomes that.
        bias: b, frozen, (fan_out,).
        down: A, (r, fan_in).
        up: B with its scale multiplied in, (fan_out, r).
        rows: g, (fan_out,); None is 1. Where it is exactly 0 its own gradient is 0.
    """
    dtype = compute_dtype(x)
    flat = x.reshape(-1, x.shape[-1]).to(dtype)
    form, held = (None, (weight,)) if isinstance(weight, Tensor) else weight
    y: Tensor = _LowRankLinear.apply(  # type: ignore[no-untyped-call]
        flat, form, bias, down, up, rows, *held
    )
    return y.view(*x.shape[:-1], up.shape[0])


def compute_dtype(x: Tensor) -> torch.dtype:
    """Give the type of matrix products with an input: autocast's where it is on, else its own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


class _LowRankLinear(torch.autograd.Function):
    """See `low_rank_linear`; everything but the parameters is in the type of `x` here."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        form: Form | None,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        rows: Tensor | None,
        *held: Tensor,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            dtype = x.dtype
            hidden = x @ down.to(dtype).T  # (N, r)
            weight = _matrix(form, held, dtype)
            y = functional.linear(x, weight, None if bias is None else bias.to(dtype))
            change = up
            if rows is not None:
                y.mul_(rows.to(dtype))
                change = rows[:, None] * up
                if bias is not None:
                    y.add_(((1.0 - rows) * bias).to(dtype))
            y.addmm_(hidden, change.to(dtype).T)
        kept = None if rows is None else y
        ctx.form = form
        ctx.save_for_backward(x, bias, down, up, rows, hidden, kept, *held)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, down, up, rows, hidden, y, *held = ctx.saved_tensors
        grad, dtype = grads[0], x.dtype
        change = up if rows is None else rows[:, None] * up
        inner = grad @ change.to(dtype)  # (N, r)
        grad_down = (inner.T @ x).float()
        # of narrow products the one with the long side last is twice as fast
        grad_up = (hidden.T @ grad).float().T
        grad_rows = None
        scaled = grad
        if rows is not None:
            grad_up = grad_up * rows[:, None]
            grad_rows = _of_rows(grad, y, rows, bias)
            scaled = grad * rows.to(dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = scaled @ _matrix(ctx.form, held, dtype)
            grad_x.addmm_(inner, down.to(dtype))
        return grad_x, None, None, grad_down, grad_up, grad_rows, *(None for _ in held)


def _matrix(form: Form | None, held: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return held[0].to(dtype) if form is None else form.matrix(held, dtype)


def _of_rows(grad: Tensor, y: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    """Give the gradient of g from the output, since what g multiplies is (y - b) / g."""
    total = torch.linalg.vecdot(grad, y, dim=0).float()
    if bias is not None:
        total = total - bias * grad.sum(dim=0, dtype=torch.float32)
    return torch.where(rows == 0, 0.0, total / rows)
