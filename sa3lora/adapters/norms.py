"""Row and column norms of `W + up down`, without ever forming that sum.

    ||W + U D||_row^2 = ||W||_row^2 + rowsum(U * (2 W D^T + U D D^T))

Everything is float32 with its full gradient for U and D; W is frozen. A weight in another type is
converted for one product at a time, forward and again backward, so that the graph of a whole model
never holds more than one full weight beside the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Where all cancels, the root of 0 would have an infinite gradient.
SMALLEST_SQUARE = 1e-30


def row_squares(weight: Tensor) -> Tensor:
    """Give the squared norm of every row of a frozen matrix, (fan_out,), float32."""
    norms: Tensor = torch.linalg.vector_norm(weight.detach().float(), dim=1)
    return norms.square()


def weighted_col_squares(weight: Tensor, row_weights: Tensor) -> Tensor:
    """Give `sum_i row_weights_i W_ij^2` of a frozen matrix, (fan_in,), float32."""
    squares: Tensor = _WeightedSquares.apply(weight, row_weights)  # type: ignore[no-untyped-call]
    return squares


def row_norms(weight: Tensor, down: Tensor, up: Tensor, *, squares: Tensor) -> Tensor:
    """Give the norm of every row of `weight + up down`.

    Args:
        weight: Frozen matrix, (fan_out, fan_in), any floating type.
        down: D, (r, fan_in), float32.
        up: U, (fan_out, r), float32, scale included.
        squares: `row_squares(weight)`, which never changes.
    """
    cross = _frozen_product(weight, down.T)  # (fan_out, r)
    changed = squares + (up * (2.0 * cross + up @ (down @ down.T))).sum(dim=1)
    return changed.clamp_min(SMALLEST_SQUARE).sqrt()


def col_norms(
    weight: Tensor, down: Tensor, up: Tensor, *, squares: Tensor, rows: Tensor | None = None
) -> Tensor:
    """Give the norm of every column of `diag(rows) (weight + up down)`.

    Args:
        weight: Frozen matrix, (fan_out, fan_in), any floating type.
        down: D, (r, fan_in), float32.
        up: U, (fan_out, r), float32, scale included.
        squares: `weighted_col_squares(weight, rows**2)`.
        rows: Factor of every row, (fan_out,); None is 1.
    """
    weighted = up if rows is None else rows.square()[:, None] * up
    cross = _frozen_product(weight.T, weighted)  # (fan_in, r)
    changed = squares + (down.T * (2.0 * cross + down.T @ (up.T @ weighted))).sum(dim=1)
    return changed.clamp_min(SMALLEST_SQUARE).sqrt()


def _frozen_product(weight: Tensor, right: Tensor) -> Tensor:
    product: Tensor = _FrozenProduct.apply(weight, right)  # type: ignore[no-untyped-call]
    return product


class _FrozenProduct(torch.autograd.Function):
    """`weight @ right` in float32, which keeps the weight as it is stored."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.float() @ right

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (weight,) = ctx.saved_tensors
        return None, weight.float().T @ grads[0]


class _WeightedSquares(torch.autograd.Function):
    """`row_weights @ weight**2` in float32, with one temporary of the weight's size."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, row_weights: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return row_weights @ _squared(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (weight,) = ctx.saved_tensors
        return None, _squared(weight) @ grads[0]


def _squared(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.float32, copy=True).square_()
