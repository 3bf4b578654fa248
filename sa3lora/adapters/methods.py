"""Ways to make one change out of several: the sum, TIES, DARE. Pure functions of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sa3lora.adapters.effective import Term

Name = Literal["sum", "ties", "dare"]


@dataclass(frozen=True)
class Method:
    """How changes are put together.

    Attributes:
        name: `sum` is what a stack does.
        density: Share of each change's numbers that TIES keeps (the largest) or DARE (by chance).
        seed: Of DARE.
    """

    name: Name = "sum"
    density: float = 0.5
    seed: int = 0


def merged_change(weight: Tensor, terms: Sequence[Term], method: Method) -> Tensor:
    """Give the change of a base weight by all terms together, float32, in its shape."""
    if method.name == "ties":
        return _ties([term.strength * term.delta(weight) for term in terms], method.density)
    total = torch.zeros(weight.shape, dtype=torch.float32)
    for term in terms:
        change = term.strength * term.delta(weight)
        total += change if method.name == "sum" else _dropped(change, term, method=method)
    return total


def _ties(changes: Sequence[Tensor], density: float) -> Tensor:
    """Trim, elect a sign for each number, average those of that sign (Yadav et al., 2023)."""
    trimmed = [_trim(change, density) for change in changes]
    total, count = torch.zeros_like(changes[0]), torch.zeros_like(changes[0])
    sign = torch.sign(sum(trimmed, start=torch.zeros_like(changes[0])))
    for change in trimmed:
        agrees = (torch.sign(change) == sign) & (change != 0)
        total += torch.where(agrees, change, 0.0)
        count += agrees
    return total / count.clamp(min=1.0)


def _trim(change: Tensor, density: float) -> Tensor:
    """Keep the largest numbers, a share `density` of all."""
    keep = max(round(density * change.numel()), 1)
    if keep >= change.numel():
        return change
    sizes = change.abs().flatten()
    limit = sizes.kthvalue(change.numel() - keep + 1).values
    return torch.where(change.abs() >= limit, change, 0.0)


def _dropped(change: Tensor, term: Term, *, method: Method) -> Tensor:
    """Drop numbers by chance and scale up the rest (Yu et al., 2024).

    What is dropped depends on the seed, the adapter and the layer, so the order moves nothing.
    """
    label = f"{method.seed}/{term.adapter.content_hash}/{term.site}/{term.strength!r}"
    number = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "big", signed=True)
    generator = torch.Generator().manual_seed(number)
    kept = torch.rand(change.shape, generator=generator) < method.density
    return torch.where(kept, change / method.density, 0.0)
