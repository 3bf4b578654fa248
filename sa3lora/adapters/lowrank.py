"""The best change of low rank, and what it leaves out. Pure functions of tensors.

By singular values (Eckart and Young, 1936). A product of narrow factors is never multiplied out; a
full matrix is reduced through its smaller Gram matrix, in float64, which is several times faster
than a singular value decomposition of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 2048


@dataclass(frozen=True)
class LowRank:
    """A change `up @ down` of low rank, with the singular values evened out between both.

    Attributes:
        down: (r, fan_in), float32.
        up: (fan_out, r), float32.
        energy: Squared Frobenius norm of the change it stands for.
        lost: What of that energy it leaves out.
        values: Singular values of the whole change, descending, as far as they are known.
    """

    down: Tensor
    up: Tensor
    energy: float
    lost: float
    values: Tensor


def truncate_product(down: Tensor, up: Tensor, rank: int) -> LowRank:
    """Give the best rank-`rank` change for `up @ down`, through its narrow sides."""
    left, left_core = torch.linalg.qr(up.double())  # (fan_out, k), (k, k)
    right, right_core = torch.linalg.qr(down.double().T)
    u, values, vh = torch.linalg.svd(left_core @ right_core.T)
    keep = min(rank, len(values))
    root = values[:keep].sqrt()
    return LowRank(
        down=(root[:, None] * (vh[:keep] @ right.T)).float(),
        up=((left @ u[:, :keep]) * root).float(),
        energy=float(values.square().sum()),
        lost=float(values[keep:].square().sum()),
        values=values,
    )


def truncate_matrix(change: Tensor, rank: int) -> LowRank:
    """Give the best rank-`rank` change for a full matrix, fan_out x fan_in."""
    if change.shape[0] < change.shape[1]:
        turned = truncate_matrix(change.T, rank)
        return LowRank(
            turned.up.T.contiguous(), turned.down.T.contiguous(), turned.energy, turned.lost,
            turned.values,
        )  # fmt: skip
    squares, vectors = torch.linalg.eigh(_gram(change))  # ascending
    squares = squares.flip(0).clamp(min=0.0)
    keep = min(rank, len(squares))
    basis = vectors.flip(1)[:, :keep]
    root = squares[:keep].pow(0.25)  # root of the singular value
    inverse = torch.where(root > 0, 1 / root, torch.zeros_like(root))
    projected = [part.double() @ basis for part in torch.split(change, _ROWS)]
    energy = float(squares.sum())
    return LowRank(
        down=(root[:, None] * basis.T).float().contiguous(),
        up=(torch.cat(projected) * inverse).float(),
        energy=energy,
        lost=float(squares[keep:].sum()),
        values=squares.sqrt(),
    )


def _gram(change: Tensor) -> Tensor:
    total = torch.zeros(change.shape[1], change.shape[1], dtype=torch.float64)
    for part in torch.split(
        change, _ROWS
    ):  # in pieces: the whole in float64 would double the memory
        rows = part.double()
        total += rows.T @ rows
    return total


def fill_rank(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Fill both factors up to a rank with zeros, since the released tools know only one a file."""
    missing = rank - down.shape[0]
    if missing <= 0:
        return down.contiguous(), up.contiguous()
    down = torch.cat([down, down.new_zeros(missing, down.shape[1])])
    return down, torch.cat([up, up.new_zeros(up.shape[0], missing)], dim=1)
