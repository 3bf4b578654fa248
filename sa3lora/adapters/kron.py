"""LoKr: a change that is the Kronecker product of two small matrices. Pure functions of tensors.

    D = scale * (w1 kron w2),    w1 = w1_a w1_b or whole,    w2 = w2_a w2_b or whole

(Yeh et al., 2024, as PEFT has it.) Row a k + b and column c n + d of D hold w1[a, c] w2[b, d].

Where w2 has a kernel, PEFT 0.21 multiplies w1 with its last two axes instead of the first two and
lays the numbers out anew in the shape of the weight. What that makes of a layer is no Kronecker
product any more, but it is what was trained, so it is what we play.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

#: Names of the tensors of one layer, in PEFT's files as in ours.
KRON_TENSORS = (
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
)  # fmt: skip

Shape = tuple[int, ...]


@dataclass(frozen=True)
class KronFactors:
    """A change as `left kron (up_part down_part)`, float32, scale included in `left`."""

    left: Tensor
    up_part: Tensor
    down_part: Tensor

    @cached_property
    def right(self) -> Tensor:
        """The second factor multiplied out."""
        return self.up_part @ self.down_part

    def delta(self, base: Tensor, rows: slice = slice(None)) -> Tensor:
        """Give some rows of the change as a matrix; it does not depend on the base."""
        height = len(self.right)
        picked = torch.arange(len(self.left) * height, device=self.left.device)[rows]
        left = self.left[picked // height]  # (rows, m)
        right = self.right[picked % height]  # (rows, n)
        return (left[:, :, None] * right[:, None, :]).flatten(1)

    @cached_property
    def down(self) -> Tensor:
        """A of the same change as a product B A."""
        eye = torch.eye(self.left.shape[1], device=self.left.device)
        return torch.kron(eye, self.down_part)

    @cached_property
    def up(self) -> Tensor:
        """B of the same change as a product B A."""
        return torch.kron(self.left, self.up_part)


def kron_factors(tensors: Mapping[str, Tensor], *, scale: float, like: Tensor) -> KronFactors:
    """Take the tensors of one layer apart, on the device of `like`."""
    found = {name: t.to(like.device, torch.float32) for name, t in tensors.items()}
    if "lokr_w1" in found:
        left = found["lokr_w1"]
    else:
        left = found["lokr_w1_a"] @ found["lokr_w1_b"]
    if "lokr_w2" in found and found["lokr_w2"].ndim == 3:
        rows = len(left) * len(found["lokr_w2"])
        whole = torch.kron(left, found["lokr_w2"]).reshape(rows, -1)
        return KronFactors(left.new_full((1, 1), scale), torch.eye(rows, device=left.device), whole)
    if "lokr_w2" in found:
        right = found["lokr_w2"]
        # As narrow as it can be written without a decomposition.
        eye = torch.eye(min(right.shape), device=right.device)
        up, down = (right, eye) if right.shape[1] < right.shape[0] else (eye, right)
    else:
        up, down = found["lokr_w2_a"], found["lokr_w2_b"]
    return KronFactors(scale * left, up, down)


def kron_shape(shapes: Mapping[str, Shape]) -> tuple[int, int] | None:
    """Give (fan_out, fan_in) of the change that tensors of these shapes make; None if they cannot.

    Each factor is there once, whole or as two matrices that fit each other.
    """
    sides = [_side(shapes, name) for name in ("lokr_w1", "lokr_w2")]
    if set(shapes) - set(KRON_TENSORS) or sides[0] is None or sides[1] is None:
        return None
    (left_rows, left_columns), (right_rows, right_columns) = sides[0], sides[1]
    return left_rows * right_rows, left_columns * right_columns


def _side(shapes: Mapping[str, Shape], name: str) -> tuple[int, int] | None:
    whole, up, down = shapes.get(name), shapes.get(f"{name}_a"), shapes.get(f"{name}_b")
    if whole is not None:
        allowed = (2, 3) if name == "lokr_w2" else (2,)
        if up is not None or down is not None or len(whole) not in allowed or 0 in whole:
            return None
        return whole[0], whole[1] * (whole[2] if len(whole) == 3 else 1)
    if up is None or down is None or len(up) != 2 or len(down) != 2:
        return None
    return None if up[1] != down[0] or 0 in (*up, *down) else (up[0], down[1])
