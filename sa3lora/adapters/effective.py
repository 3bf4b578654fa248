"""The weight that several adapters make of a base weight.

    W_effective = W + sum_i  strength_i * delta_i(W)

Every delta is taken of the untouched base weight; the sum is in float32, in the order of content
hashes, and rounded to the weight's type once. The official rule instead runs the adapters one
after the other in the order of loading, each with its strength on the low-rank change alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sa3lora.adapters.deltas import Factors, delta, factors_of, trained_weight
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.kron import KronFactors
from sa3lora.errors import AdapterError

# Numbers of a block: its few temporaries then stay in a core's cache, which is most of the speed.
_BLOCK = 1 << 17


@dataclass(frozen=True)
class Term:
    """One adapter's part in one weight; `known` are its factors where somebody kept them."""

    adapter: AdapterFile
    site: str
    strength: float
    known: Factors | KronFactors | None = None

    @property
    def sort_key(self) -> tuple[str, float]:
        """Order of summation: by content, then by strength where one adapter is there twice."""
        return self.adapter.content_hash, self.strength

    def delta(self, weight: Tensor) -> Tensor:
        """Give the change at strength 1 of a base weight, float32."""
        return delta(
            weight,
            self.adapter.tensors[self.site],
            adapter_type=self.adapter.config.type,
            scale=self.adapter.scale(self.site),
        )

    def factors(self, weight: Tensor) -> Factors | KronFactors:
        """Give the parts of the trained weight for this base weight."""
        if self.known is not None:
            return self.known
        return factors_of(
            weight,
            self.adapter.tensors[self.site],
            adapter_type=self.adapter.config.type,
            scale=self.adapter.scale(self.site),
        )


def terms_of(site: str, adapters: Iterable[tuple[AdapterFile, float]]) -> list[Term]:
    """Collect what acts on a site, in the order of summation; strength 0 does not act."""
    found = [
        Term(adapter, site, float(strength))
        for adapter, strength in adapters
        if strength != 0.0 and site in adapter.tensors
    ]
    return sorted(found, key=lambda term: term.sort_key)


def effective_weight(weight: Tensor, terms: Sequence[Term]) -> Tensor:
    """Sum a base weight and the changes of all terms in float32, not yet rounded."""
    target = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    _sum_blocks(target, weight.detach(), terms)
    return target


def fold_into(target: Tensor, base: Tensor, terms: Sequence[Term], *, site: str) -> None:
    """Write the effective weight into `target`, rounded to its type; equal to `effective_weight`.

    Raises:
        AdapterError: If a value does not fit that type; the message names the site. What `target`
            holds is then of no use.
    """
    if not _sum_blocks(target, base.detach(), terms):
        raise _overflow(target.dtype, site)


def fold_officially(target: Tensor, base: Tensor, terms: Sequence[Term], *, site: str) -> None:
    """Write what the official chain makes of a weight, rounded after each adapter as there.

    Raises:
        AdapterError: If a value does not fit the type; the message names the site.
    """
    current = base.detach()
    for term in terms:
        factors = term.factors(base)
        moved = trained_weight(
            base,
            term.adapter.tensors[site],
            adapter_type=term.adapter.config.type,
            scale=term.adapter.scale(site),
            strength=term.strength,
            incoming=current,
            low_rank=(factors.down, factors.up),
        )
        current = round_to(moved, dtype=target.dtype, site=site)
    target.copy_(current)


def round_to(effective: Tensor, *, dtype: torch.dtype, site: str) -> Tensor:
    """Round an effective weight to the type it is stored in.

    Raises:
        AdapterError: If a value does not fit that type; the message names the site.
    """
    rounded = effective.to(dtype)
    if not torch.isfinite(rounded).all():
        raise _overflow(dtype, site)
    return rounded


def _overflow(dtype: torch.dtype, site: str) -> AdapterError:
    return AdapterError(
        f"the adapters at these strengths overflow {dtype} in {site}. Lower the strengths, "
        "or use --dtype float32."
    )


def _sum_blocks(target: Tensor, base: Tensor, terms: Sequence[Term]) -> bool:
    """Sum block by block of rows; tell whether every number is finite."""
    factors = [(term.factors(base), term.strength) for term in terms]
    matrix, written = base.flatten(1), target.flatten(1)
    step = max(1, _BLOCK // matrix.shape[1]) if base.device.type == "cpu" else len(matrix)
    finite = True
    for start in range(0, len(matrix), step):
        rows = slice(start, start + step)
        block = matrix[rows].float()
        change = torch.zeros_like(block)
        for parts, strength in factors:
            change.add_(parts.delta(block, rows), alpha=strength)
        if written.dtype == torch.float32:
            torch.add(block, change, out=written[rows])
        else:
            written[rows].copy_(change.add_(block))
        finite = finite and _all_finite(written[rows])
    return finite


def _all_finite(block: Tensor) -> bool:
    # The sum is one pass without a temporary; only where it is not finite each number is looked at.
    return bool(torch.isfinite(block.sum(dtype=torch.float32))) or bool(torch.isfinite(block).all())
