"""One exact adapter from several where some have magnitudes on the same side.

With d_i = m_i / ||W + D_i|| for each row (1 for plain types) and e = 1 + sum s_i (d_i - 1):

    W + sum s_i delta_i = e W + sum s_i d_i D_i = e (W + B A)

where B stacks [s_i d_i B_i] / e. So it is a `dora-rows` adapter of magnitude e ||W + B A||. With
columns the same holds for A. Sums are in float64: e and d_i are differences of near equals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sa3lora.adapters.deltas import EPSILON, low_rank_factors
from sa3lora.adapters.effective import Term
from sa3lora.adapters.lowrank import fill_rank
from sa3lora.errors import AdapterError

Axis = Literal["rows", "cols"]
_PLAIN = {"lora", "lora-xs"}
_ROWS = 2048
# Below this a row of the base is all but cancelled, and what is divided by it means nothing.
_SMALLEST = 1e-4


def exact_type(types: Sequence[str]) -> str | None:
    """Give the type of one adapter that equals a stack of these, or None if there is none."""
    found = set(types)
    if found <= _PLAIN:
        return "lora"
    for axis in ("rows", "cols"):
        if found <= _PLAIN | {f"dora-{axis}", f"dora-{axis}-xs"}:
            return f"dora-{axis}"
    return None


def plain_factors(weight: Tensor, term: Term) -> tuple[Tensor, Tensor]:
    """Give (A, B) of a term in float64, alpha / rank in B, its strength not."""
    down, up = low_rank_factors(
        weight,
        term.adapter.tensors[term.site],
        adapter_type=term.adapter.config.type,
        scale=term.adapter.scale(term.site),
    )
    return down.double(), up.double()


def exact_site(
    weight: Tensor, terms: Sequence[Term], *, adapter_type: str, rank: int
) -> dict[str, Tensor]:
    """Give the tensors of one layer of the merged adapter, whose alpha is its rank.

    Args:
        weight: Base weight.
        terms: What acts on it, of types that `exact_type` allows.
        adapter_type: What `exact_type` gave.
        rank: At least the sum of their ranks; filled up with zeros.

    Raises:
        AdapterError: If the strengths cancel a row or column of the base.
    """
    axis: Axis = "cols" if adapter_type == "dora-cols" else "rows"
    matrix = weight.detach().flatten(1)
    total = torch.zeros(matrix.shape[0 if axis == "rows" else 1], dtype=torch.float64)
    downs, ups = [], []
    for term in terms:
        down, up = plain_factors(weight, term)
        ratio = torch.ones_like(total)
        if "magnitude" in term.adapter.tensors[term.site]:
            magnitude = term.adapter.tensors[term.site]["magnitude"].double()
            ratio = magnitude / (axis_norms(matrix, down, up, axis=axis) + EPSILON)
        total += term.strength * (ratio - 1)
        factor = term.strength * ratio
        downs.append(down * factor if axis == "cols" else down)
        ups.append(up * factor[:, None] if axis == "rows" else up)
    kept = _kept(matrix, 1 + total, axis=axis, site=terms[0].site)
    down, up = torch.cat(downs), torch.cat(ups, dim=1)
    if axis == "rows":
        up = up / kept[:, None]
    else:
        down = down / kept
    down, up = fill_rank(down.float(), up.float(), rank)
    tensors = {"lora_A": down, "lora_B": up}
    if adapter_type != "lora":
        # Of what is stored, so that rounding it changes no norm.
        norms = axis_norms(matrix, down.double(), up.double(), axis=axis)
        tensors["magnitude"] = (kept * norms).float()
    return tensors


def axis_norms(matrix: Tensor, down: Tensor, up: Tensor, *, axis: Axis) -> Tensor:
    """Give the row or column norms of `matrix + up @ down` in float64, in pieces of rows."""
    squares = []
    for start in range(0, matrix.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        moved = matrix[rows].double() + up[rows] @ down
        squares.append(moved.square().sum(dim=1 if axis == "rows" else 0))
    found = torch.cat(squares) if axis == "rows" else torch.stack(squares).sum(dim=0)
    return found.sqrt()


def _kept(matrix: Tensor, share: Tensor, *, axis: Axis, site: str) -> Tensor:
    """Give how much of each row or column of the base stays; 1 where the base has nothing."""
    empty = ~matrix.any(dim=1 if axis == "rows" else 0)
    share = torch.where(empty, torch.ones_like(share), share)
    gone = int((share.abs() < _SMALLEST).sum())
    if gone:
        kind = "rows" if axis == "rows" else "columns"
        raise AdapterError(
            f"at these strengths {gone} {kind} of the base vanish in {site}, which no adapter "
            "can do. Change a strength a little, pass --rank R, or merge with --into-base."
        )
    return share
