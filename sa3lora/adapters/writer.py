"""Write effective weights into layers, keep their base weights, and give them back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from sa3lora.adapters.branch import LowRankBranch
from sa3lora.adapters.deltas import Factors
from sa3lora.adapters.effective import Term
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.kron import KronFactors
from sa3lora.errors import AdapterError

# A small change folded into bfloat16 loses up to half of itself to rounding.
FOLDABLE = (torch.float16, torch.float32, torch.float64)


class Fold(Protocol):
    """Writes what terms make of a base weight into a target, or raises AdapterError."""

    def __call__(self, target: Tensor, base: Tensor, terms: Sequence[Term], *, site: str) -> None:
        """Write."""
        ...


class WeightWriter:
    """The layers of one model, with the base weights of those that hold something else.

    Attributes:
        bases: Kept base weights by site.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        *,
        keep_on: torch.device | str | None,
        fold: Fold,
    ) -> None:
        """Take the layers as they are: what they hold now is the base."""
        self.bases: dict[str, Tensor] = {}
        self._layers = layers
        self._keep_on = keep_on
        self._fold = fold
        self._branches: dict[str, LowRankBranch] = {}
        self._factors: dict[tuple[str, str], Factors | KronFactors] = {}

    def keep_factors_of(self, adapters: Iterable[AdapterFile]) -> None:
        """Forget what adapters that are gone made of the weights."""
        hashes = {adapter.content_hash for adapter in adapters}
        self._factors = {key: kept for key, kept in self._factors.items() if key[0] in hashes}

    def write(self, site: str, terms: Sequence[Term]) -> None:
        """Let a layer compute with these terms; without any it is the base bit for bit.

        Raises:
            AdapterError: If the result overflows the weight's type, or the model was cast.
        """
        weight = self._layers[site].get_parameter("weight")
        if weight.dtype not in FOLDABLE:
            self._attach(site, self._known(site, terms, weight))
            return
        kept = self.bases.get(site)
        if kept is not None and kept.dtype != weight.dtype:
            raise AdapterError(
                f"the model was cast to {weight.dtype} while adapters were folded into it as "
                f"{kept.dtype}. Unload them before casting."
            )
        if not terms:
            if kept is not None:
                weight.copy_(self.bases.pop(site))
            return
        if kept is None:
            kept = weight.detach().to(self._keep_on or weight.device, copy=True)
            self.bases[site] = kept
        base = kept.to(weight.device)
        self._fold(weight, base, self._known(site, terms, base), site=site)

    def _known(self, site: str, terms: Sequence[Term], weight: Tensor) -> list[Term]:
        """Work out what each adapter makes of this weight, once for all strengths."""
        known = []
        for term in terms:
            key = term.adapter.content_hash, site
            if key not in self._factors:
                self._factors[key] = term.factors(weight)
            known.append(replace(term, known=self._factors[key]))
        return known

    def _attach(self, site: str, terms: Sequence[Term]) -> None:
        branch = self._branches.pop(site, None)
        if branch is not None:
            branch.remove()
        if terms:
            layer = self._layers[site]
            factors = [(term.factors(layer.get_parameter("weight")), term) for term in terms]
            pairs = [(parts.down, term.strength * parts.up) for parts, term in factors]
            self._branches[site] = LowRankBranch(layer, pairs)
