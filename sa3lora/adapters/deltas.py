"""The change that each adapter type makes to a weight. Pure functions of tensors.

W is the base weight as a matrix, fan_out x fan_in; D = scale * B A, or scale * U M V^T for the
`-xs` types, whose U and V are the leading singular vectors of W. Norms carry an epsilon outside
the root, as the released tools have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sa3lora.adapters.config import LOKR
from sa3lora.adapters.kron import KronFactors, kron_factors

EPSILON = 1e-12
# Of squared singular values: below it the Gram matrix has lost the digits.
_SMALLEST_RATIO = 1e-8

Tensors = Mapping[str, Tensor]


def low_rank_factors(
    weight: Tensor, tensors: Tensors, *, adapter_type: str, scale: float
) -> tuple[Tensor, Tensor]:
    """Give (A, B) in float32 with B A the low-rank change, scale included.

    Args:
        weight: Base weight, any shape whose first axis is fan_out.
        tensors: The tensors of one site by their names in the file.
        adapter_type: One of the eight types, or `lokr`, whose rank may be as large as the layer's.
        scale: alpha / rank.
    """
    if adapter_type == LOKR:
        parts = kron_factors(tensors, scale=scale, like=weight)
        return parts.down, parts.up
    if adapter_type.endswith("-xs"):
        middle = tensors["M_xs"].to(weight.device, torch.float32)
        if "U" in tensors:  # carried in the file, for another base or another machine
            left, right = (tensors[name].to(weight.device, torch.float32) for name in ("U", "V"))
        else:
            left, right = svd_basis(weight, middle.shape[0])
        return right.T.contiguous(), left @ (scale * middle)
    down = tensors["lora_A"].to(weight.device, torch.float32)
    up = tensors["lora_B"].to(weight.device, torch.float32)
    return down, scale * up


def svd_basis(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Give the leading `rank` left and right singular vectors, with the released sign rule.

    The entry of largest size in each left vector (the first of equals) is made positive. Computed
    on the CPU in float64, through the smaller Gram matrix: nearer to the exact basis than the
    float32 SVD of the released tools, a few times faster, and the same for any number of threads
    to float32 rounding. Only where vectors beyond the numerical rank are asked for, by a full SVD.

    Raises:
        ValueError: If `rank` exceeds the smaller side of the matrix.
    """
    matrix = weight.detach().to("cpu", torch.float32).flatten(1)
    if rank > min(matrix.shape):
        raise ValueError(f"rank {rank} exceeds the smaller side of {tuple(matrix.shape)}")
    left, right = _leading_vectors(matrix.double(), rank)
    largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True))  # (1, rank)
    sign = torch.where(largest < 0, -1.0, 1.0)
    return (left * sign).float().to(weight.device), (right * sign).float().to(weight.device)


def _leading_vectors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    wide = matrix.shape[0] <= matrix.shape[1]
    short = matrix if wide else matrix.T
    squares, vectors = torch.linalg.eigh(short @ short.T)  # ascending
    squares, near = squares[-rank:].flip(0), vectors[:, -rank:].flip(1)
    if squares[-1] <= _SMALLEST_RATIO * squares[0]:
        left, _, right_t = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :rank], right_t[:rank].T
    far = short.T @ near / squares.sqrt()
    return (near, far) if wide else (far, near)


def _rows(matrix: Tensor, magnitude: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
    return magnitude[:, None] * matrix / (norm + EPSILON)


def _cols(matrix: Tensor, magnitude: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(matrix, dim=0, keepdim=True)
    return matrix / (norm + EPSILON) * magnitude[None, :]


def _rescale_rows(moved: Tensor, tensors: Tensors) -> Tensor:
    return _rows(moved, _float32(tensors["magnitude"], moved))


def _rescale_cols(moved: Tensor, tensors: Tensors) -> Tensor:
    return _cols(moved, _float32(tensors["magnitude"], moved))


def _rescale_both(moved: Tensor, tensors: Tensors) -> Tensor:
    rows = _rows(moved, _float32(tensors["magnitude_r"], moved))
    return _cols(rows, _float32(tensors["magnitude_c"], moved))


# What follows the low-rank change, by type; plain types end with W + D.
_RESCALE: Mapping[str, Callable[[Tensor, Tensors], Tensor] | None] = {
    "lora": None,
    "lora-xs": None,
    LOKR: None,
    "dora-rows": _rescale_rows,
    "dora-rows-xs": _rescale_rows,
    "dora-cols": _rescale_cols,
    "dora-cols-xs": _rescale_cols,
    "bora": _rescale_both,
    "bora-xs": _rescale_both,
}


def is_additive(adapter_type: str) -> bool:
    """Tell whether the change is low-rank and the same for any base: no magnitudes."""
    return _RESCALE[adapter_type] is None


@dataclass(frozen=True)
class Factors:
    """A trained weight in parts: `diag(rows) (W + up down) diag(cols)`, float32, strength 1.

    They depend on the base weight and not on any strength. None stands for all ones.
    """

    down: Tensor
    up: Tensor
    rows: Tensor | None = None
    cols: Tensor | None = None

    def delta(self, base: Tensor, rows: slice = slice(None)) -> Tensor:
        """Give `trained - W` for some rows of the matrix W, which `base` holds as float32."""
        change = self.up[rows] @ self.down
        if self.rows is None and self.cols is None:
            return change  # free of the rounding of adding and subtracting W
        change += base
        if self.rows is not None:
            change *= self.rows[rows, None]
        if self.cols is not None:
            change *= self.cols
        return change.sub_(base)


def factors_of(
    weight: Tensor, tensors: Tensors, *, adapter_type: str, scale: float
) -> Factors | KronFactors:
    """Split what an adapter makes of a base weight into its parts."""
    if adapter_type == LOKR:
        return kron_factors(tensors, scale=scale, like=weight)
    down, up = low_rank_factors(weight, tensors, adapter_type=adapter_type, scale=scale)
    if is_additive(adapter_type):
        return Factors(down, up)
    moved = weight.detach().float().flatten(1) + up @ down
    rows = cols = None
    if adapter_type.startswith(("dora-rows", "bora")):
        name = "magnitude_r" if adapter_type.startswith("bora") else "magnitude"
        rows = _float32(tensors[name], moved) / (_norm(moved, dim=1) + EPSILON)
    if adapter_type.startswith(("dora-cols", "bora")):
        name = "magnitude_c" if adapter_type.startswith("bora") else "magnitude"
        scaled = moved if rows is None else moved.mul_(rows[:, None])
        cols = _float32(tensors[name], moved) / (_norm(scaled, dim=0) + EPSILON)
    return Factors(down, up, rows, cols)


def trained_weight(
    weight: Tensor,
    tensors: Tensors,
    *,
    adapter_type: str,
    scale: float,
    strength: float = 1.0,
    incoming: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Give the weight an adapter was trained to, by the released formula, in float32.

    Args:
        weight: True base weight; `-xs` types take their bases from it.
        tensors: The tensors of one site by their names in the file.
        adapter_type: One of the eight types.
        scale: alpha / rank.
        strength: That of the released tools: it multiplies the low-rank change alone, and at
            exactly 0 gives the incoming weight. Use `delta` for this project's own rule.
        incoming: What earlier adapters of a chain made of the weight; None is the weight.
        low_rank: From `low_rank_factors`, where they are known.
    """
    current = (weight if incoming is None else incoming).detach().to(torch.float32)
    if strength == 0.0:
        return current
    if low_rank is None:
        low_rank = low_rank_factors(weight, tensors, adapter_type=adapter_type, scale=scale)
    down, up = low_rank
    moved = current.flatten(1) + strength * (up @ down)
    rescale = _RESCALE[adapter_type]
    result = moved if rescale is None else rescale(moved, tensors)
    return result.reshape(weight.shape)


def delta(weight: Tensor, tensors: Tensors, *, adapter_type: str, scale: float) -> Tensor:
    """Give `trained(W) - W` at strength 1 in float32, in the shape of `weight`.

    For the plain types it is the product itself, free of the rounding of adding and subtracting W.
    """
    factors = factors_of(weight, tensors, adapter_type=adapter_type, scale=scale)
    return factors.delta(weight.detach().float().flatten(1)).reshape(weight.shape)


def _float32(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like.device, torch.float32)


def _norm(matrix: Tensor, *, dim: int) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(matrix, dim=dim)
    return norm
