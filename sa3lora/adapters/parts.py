"""What a trained adapter has beside A and B: magnitudes, M_xs, and what is known of its base."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sa3lora.adapters.config import LOW_RANK, TENSORS
from sa3lora.adapters.deltas import EPSILON, svd_basis
from sa3lora.adapters.norms import (
    SMALLEST_SQUARE,
    col_norms,
    row_norms,
    row_squares,
    weighted_col_squares,
)

_LOGGER = logging.getLogger(__name__)
_SHOWN = 8

PISSA = "pissa"  # plain LoRA that starts from the leading part of W and subtracts that part
MAGNITUDES = ("magnitude", "magnitude_r", "magnitude_c")


@dataclass(frozen=True)
class Scaling:
    """Factors of rows and columns, and the norms that were divided by; None where there are none.

    The columns' norms are those after the rows were scaled.
    """

    rows: Tensor | None = None
    cols: Tensor | None = None
    row_norms: Tensor | None = None
    col_norms: Tensor | None = None


class AdapterParts(nn.Module):
    """Trained tensors of one adapter on one layer beside A and B, all float32.

    A row or column that is all zero in the base has no direction that a magnitude could scale. Its
    factor stays 1 for good, so that it trains like plain LoRA; files hold the magnitude that says
    so.

    Attributes:
        adapter_type: One of the eight, or `pissa`.
    """

    row_squares: Tensor
    col_squares: Tensor
    dead_rows: Tensor
    dead_cols: Tensor
    first_down: Tensor
    first_up: Tensor

    def __init__(self, adapter_type: str, *, r: int, layer: nn.Module) -> None:
        """Make parameters of the right shapes; `measure` gives them their first values."""
        super().__init__()
        self.adapter_type = adapter_type
        self._layer = (layer,)  # in a tuple it is no child of this module
        self._apart: Tensor | None = None
        matrix = self.matrix
        fan_out, fan_in = matrix.shape
        for name in _trained_beside(adapter_type):
            rows = name == "magnitude_r" or (name == "magnitude" and "rows" in adapter_type)
            shape = (r, r) if name == "M_xs" else (fan_out if rows else fan_in,)
            zeros = torch.zeros(shape, device=matrix.device)
            self.register_parameter(name, nn.Parameter(zeros))

    @property
    def shared(self) -> bool:
        """Whether `untouched` is the weight that the layer itself multiplies with."""
        return self._apart is None

    @property
    def untouched(self) -> Tensor:
        """The base weight, without whatever else is folded into the layer.

        Asked for anew each time: where a base is spread over processes it is whole only while its
        block computes, and one in few bits is made whole for the call.
        """
        if self._apart is not None:
            return self._apart
        weight = self._layer[0].weight  # a parameter, or made of few bits
        assert isinstance(weight, Tensor)
        return weight.detach()

    @property
    def matrix(self) -> Tensor:
        """The untouched weight, (fan_out, fan_in)."""
        return self.untouched.flatten(1)

    @property
    def row_magnitude(self) -> nn.Parameter | None:
        """Magnitudes of rows, if the type has them."""
        return self._magnitude("dora-rows", "magnitude_r")

    @property
    def col_magnitude(self) -> nn.Parameter | None:
        """Magnitudes of columns, if the type has them."""
        return self._magnitude("dora-cols", "magnitude_c")

    @property
    def has_dead(self) -> bool:
        """Whether a row or column is all zero in the base and has a magnitude."""
        flags = (getattr(self, name, None) for name in ("dead_rows", "dead_cols"))
        return any(bool(each.any()) for each in flags if each is not None)

    def _magnitude(self, alone: str, in_bora: str) -> nn.Parameter | None:
        if self.adapter_type.startswith(alone):
            return self.get_parameter("magnitude")
        return self.get_parameter(in_bora) if self.adapter_type.startswith("bora") else None

    @torch.no_grad()
    def measure(self, untouched: Tensor | None) -> tuple[int, int]:
        """Set magnitudes to the norms of the base; return its counts of zero rows and columns.

        Args:
            untouched: The base weight where the layer's own holds something else.
        """
        if untouched is not None:
            self._apart = untouched.detach()
        matrix, dead = self.matrix, [0, 0]
        if (rows := self.row_magnitude) is not None:
            squares = row_squares(matrix)
            self.register_buffer("row_squares", squares, persistent=False)
            self.register_buffer("dead_rows", squares <= SMALLEST_SQUARE, persistent=False)
            rows.copy_(squares.sqrt())
            dead[0] = int(self.dead_rows.sum())
        if (cols := self.col_magnitude) is not None:
            squares = weighted_col_squares(matrix, torch.ones_like(matrix[:, 0]).float())
            self.register_buffer("col_squares", squares, persistent=False)
            self.register_buffer("dead_cols", squares <= SMALLEST_SQUARE, persistent=False)
            cols.copy_(squares.sqrt())
            dead[1] = int(self.dead_cols.sum())
        return dead[0], dead[1]

    @torch.no_grad()
    def start(self, down: Tensor, up: Tensor, *, scale: float, exact: Tensor | None = None) -> None:
        """Set A and B, as the layer has them, to what the type starts from; most types leave them.

        Args:
            down: A, zeros or not.
            up: B.
            scale: alpha / rank.
            exact: The untouched weight as it is stored, if this one was rounded.
        """
        r = len(down)
        if self.adapter_type == PISSA:
            first_down, first_up = leading_part(self.untouched, r, scale=scale)
            self.register_buffer("first_down", first_down, persistent=False)
            self.register_buffer("first_up", first_up, persistent=False)
        elif self.adapter_type.endswith("-xs"):
            first_up, right = svd_basis(self.untouched if exact is None else exact, r)
            first_down = right.T
        else:
            return
        down.copy_(first_down.reshape(down.shape))
        up.copy_(first_up.reshape(up.shape))

    def scaling(self, down: Tensor, up: Tensor) -> Scaling:
        """Give the factors for a low-rank change `up down`, with their full gradient."""
        rows = cols = row_norm = col_norm = None
        if self.row_magnitude is None and self.col_magnitude is None:
            return Scaling()  # without the weight, which may have to be made first
        matrix = self.matrix
        if (magnitude := self.row_magnitude) is not None:
            row_norm = row_norms(matrix, down, up, squares=self.row_squares)
            rows = _factors(magnitude, row_norm, dead=self.dead_rows)
        if (magnitude := self.col_magnitude) is not None:
            squares = (
                self.col_squares if rows is None else weighted_col_squares(matrix, rows.square())
            )
            col_norm = col_norms(matrix, down, up, squares=squares, rows=rows)
            cols = _factors(magnitude, col_norm, dead=self.dead_cols)
        return Scaling(rows, cols, row_norm, col_norm)

    @torch.no_grad()
    def stored_magnitudes(self, down: Tensor, up: Tensor) -> dict[str, Tensor]:
        """Give the magnitudes for a file; where the factor is kept at 1, the norm itself."""
        found = {n: p.detach() for n, p in self.named_parameters() if n in MAGNITUDES}
        if not self.has_dead:
            return found
        scaling = self.scaling(down, up)
        for name in found:
            if self.get_parameter(name) is self.row_magnitude:
                norm, dead = scaling.row_norms, self.dead_rows
            else:
                norm, dead = scaling.col_norms, self.dead_cols
            assert norm is not None
            found[name] = torch.where(dead, norm, found[name])
        return found


def report_dead(adapter_type: str, dead: Mapping[str, tuple[int, int]]) -> None:
    """Say which layers have rows or columns of zeros, (rows, columns) by site, and what follows."""
    named = [
        f"{site} ({rows} rows, {columns} columns)"
        for site, (rows, columns) in dead.items()
        if rows or columns
    ]
    if named:
        shown = ", ".join(named[:_SHOWN]) + (", ..." if len(named) > _SHOWN else "")
        _LOGGER.warning(
            "%d layers have weights of all zeros, which no magnitude can scale: there %s trains as "
            "plain lora. %s",
            len(named),
            adapter_type,
            shown,
        )


def leading_part(weight: Tensor, r: int, *, scale: float) -> tuple[Tensor, Tensor]:
    """Give (A, B) with `scale * B A` the best approximation of rank r to a weight (PiSSA)."""
    left, right = svd_basis(weight, r)
    matrix = weight.detach().float().flatten(1)
    singular = (left * (matrix @ right)).sum(dim=0).clamp_min(0.0)
    root = (singular / scale).sqrt()
    return (right * root).T.contiguous(), left * root


def _trained_beside(adapter_type: str) -> list[str]:
    return [name for name in TENSORS.get(adapter_type, ()) if name not in LOW_RANK]


def _factors(magnitude: Tensor, norm: Tensor, *, dead: Tensor) -> Tensor:
    factors = magnitude / (norm + EPSILON)
    return torch.where(dead, torch.ones_like(factors), factors)
