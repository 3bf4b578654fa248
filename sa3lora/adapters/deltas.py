"""The change that each adapter type makes to a weight. Pure functions of tensors.

W is the base weight as a matrix, fan_out x fan_in; D = scale * B A, or scale * U M V^T for the
`-xs` types, whose U and V are the leading singular vectors of W. Norms carry an epsilon outside
the root, as the released tools have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

EPSILON = 1e-12

Tensors = Mapping[str, Tensor]


def low_rank_factors(
    weight: Tensor, tensors: Tensors, *, adapter_type: str, scale: float
) -> tuple[Tensor, Tensor]:
    """Give (A, B) in float32 with B A the low-rank change, scale included.

    Args:
        weight: Base weight, any shape whose first axis is fan_out.
        tensors: The tensors of one site by their names in the file.
        adapter_type: One of the eight types.
        scale: alpha / rank.
    """
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

    The entry of largest size in each left vector (the first of equals) is made positive. Always
    computed on the CPU in float32, since the basis must not depend on the device.

    Raises:
        ValueError: If `rank` exceeds the smaller side of the matrix.
    """
    matrix = weight.detach().to("cpu", torch.float32).flatten(1)
    if rank > min(matrix.shape):
        raise ValueError(f"rank {rank} exceeds the smaller side of {tuple(matrix.shape)}")
    left, _, right_t = torch.linalg.svd(matrix, full_matrices=False)
    left, right = left[:, :rank], right_t[:rank].T
    largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True))  # (1, rank)
    sign = torch.where(largest < 0, -1.0, 1.0)
    return (left * sign).to(weight.device), (right * sign).to(weight.device)


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


def trained_weight(
    weight: Tensor, tensors: Tensors, *, adapter_type: str, scale: float, strength: float = 1.0
) -> Tensor:
    """Give the weight an adapter was trained to, by the released formula, in float32.

    `strength` is that of the released tools: it multiplies the low-rank change alone, and at
    exactly 0 gives the base weight. Use `delta` for this project's own rule.
    """
    base = weight.detach().to(torch.float32)
    if strength == 0.0:
        return base
    down, up = low_rank_factors(weight, tensors, adapter_type=adapter_type, scale=scale)
    moved = base.flatten(1) + strength * (up @ down)
    rescale = _RESCALE[adapter_type]
    result = moved if rescale is None else rescale(moved, tensors)
    return result.reshape(weight.shape)


def delta(weight: Tensor, tensors: Tensors, *, adapter_type: str, scale: float) -> Tensor:
    """Give `trained(W) - W` at strength 1 in float32, in the shape of `weight`.

    For the plain types it is the product itself, free of the rounding of adding and subtracting W.
    """
    if is_additive(adapter_type):
        down, up = low_rank_factors(weight, tensors, adapter_type=adapter_type, scale=scale)
        return (up @ down).reshape(weight.shape)
    base = weight.detach().to(torch.float32)
    return trained_weight(weight, tensors, adapter_type=adapter_type, scale=scale) - base


def _float32(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like.device, torch.float32)
