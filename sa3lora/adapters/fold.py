"""Play adapters at any strengths by folding them into the weights of a model.

    W_effective = W + sum_i  strength_i * delta_i(W)

Every delta is taken of the untouched base weight; the sum is in float32, in the order of content
hashes, and rounded to the weight's type once. So strength 0 is the base model bit for bit, and the
order of loading moves no bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sa3lora.adapters.branch import LowRankBranch
from sa3lora.adapters.compat import shape_problems
from sa3lora.adapters.deltas import delta, is_additive, low_rank_factors
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.sites import find_layers, matrix_shape
from sa3lora.errors import AdapterError, AdapterMismatchError

# A small change folded into bfloat16 loses up to half of itself to rounding.
_FOLDABLE = (torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Term:
    """One adapter's part in one weight."""

    adapter: AdapterFile
    site: str
    strength: float

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
    change = torch.zeros_like(weight, dtype=torch.float32)
    for term in terms:
        change += term.strength * term.delta(weight)
    return weight.detach().float() + change


def round_to(effective: Tensor, *, dtype: torch.dtype, site: str) -> Tensor:
    """Round an effective weight to the type it is stored in.

    Raises:
        AdapterError: If a value does not fit that type; the message names the site.
    """
    rounded = effective.to(dtype)
    if not torch.isfinite(rounded).all():
        raise AdapterError(
            f"the adapters at these strengths overflow {dtype} in {site}. Lower the strengths, "
            "or use --dtype float32."
        )
    return rounded


class AdapterStack:
    """Adapters loaded on one model, each with a strength that may change at any time.

    The stack writes into the layers of `root`; one stack at a time may own a model. A bfloat16
    layer is left as it is: its low-rank changes run beside it in float32, and types with
    magnitudes are refused there.

    Args:
        root: Module with children `model` and `conditioners`, or any module with linear layers.
        keep_on: Device for the kept base weights; None keeps them beside the weights.
    """

    def __init__(self, root: nn.Module, *, keep_on: torch.device | str | None = None) -> None:
        """Start without adapters; the model is untouched until one is added."""
        self._layers = find_layers(root)
        self._keep_on = keep_on
        self._adapters: dict[str, AdapterFile] = {}
        self._strengths: dict[str, float] = {}
        self._bases: dict[str, Tensor] = {}
        self._branches: dict[str, LowRankBranch] = {}

    @property
    def names(self) -> list[str]:
        """Names of the loaded adapters, in order of loading."""
        return list(self._adapters)

    @property
    def strengths(self) -> dict[str, float]:
        """Strength of every loaded adapter."""
        return dict(self._strengths)

    @property
    def bases(self) -> dict[str, Tensor]:
        """Untouched weights of the layers that something is folded into, by site."""
        return dict(self._bases)

    def adapter(self, name: str) -> AdapterFile:
        """Give a loaded adapter.

        Raises:
            AdapterError: If there is none of that name.
        """
        self._require([name])
        return self._adapters[name]

    def add(self, adapter: AdapterFile, name: str, *, strength: float = 1.0) -> None:
        """Load an adapter under a new name and fold it in.

        Raises:
            AdapterError: If the name is taken, the strength is not finite, or the layers' type
                cannot take this adapter.
            AdapterMismatchError: If the model lacks a site or has it in another size.
        """
        if name in self._adapters:
            raise AdapterError(
                f"an adapter named {name!r} is loaded already (loaded: {', '.join(self.names)}). "
                "Unload it first, or choose another name."
            )
        self._check_fit(adapter, name)
        self._adapters[name] = adapter
        self._strengths[name] = 0.0
        try:
            self.set_strengths({name: strength})
        except AdapterError:
            del self._adapters[name], self._strengths[name]
            raise

    def set_strengths(self, strengths: Mapping[str, float]) -> None:
        """Change some strengths, all at once; adapters not named keep theirs.

        Raises:
            AdapterError: If a name is unknown, a strength is not finite, or the result overflows
                the weights' type; everything is then as before.
        """
        self._require(strengths)
        for name, strength in strengths.items():
            if not torch.isfinite(torch.tensor(float(strength))):
                raise AdapterError(f"the strength of {name!r} must be finite, got {strength}")
        before = dict(self._strengths)
        changed = [name for name, value in strengths.items() if before[name] != float(value)]
        self._strengths.update({name: float(value) for name, value in strengths.items()})
        try:
            self._refresh(changed)
        except AdapterError:
            self._strengths = before
            self._refresh(changed)
            raise

    def remove(self, name: str) -> None:
        """Unload an adapter; what it alone changed is the base again, bit for bit.

        Raises:
            AdapterError: If there is none of that name.
        """
        self.set_strengths({name: 0.0})
        del self._adapters[name], self._strengths[name]

    def clear(self) -> None:
        """Unload everything and give the base model back."""
        for name in self.names:
            self._strengths[name] = 0.0
        self._refresh(self.names)
        self._adapters.clear()
        self._strengths.clear()

    def _require(self, names: Iterable[str]) -> None:
        unknown = [name for name in names if name not in self._adapters]
        if unknown:
            loaded = ", ".join(self.names) or "none"
            raise AdapterError(
                f"no adapter named {', '.join(map(repr, unknown))}; loaded: {loaded}"
            )

    def _check_fit(self, adapter: AdapterFile, name: str) -> None:
        weights = {site: _weight(layer) for site, layer in self._layers.items()}
        shapes = {site: matrix_shape(weight.shape) for site, weight in weights.items()}
        problems = shape_problems(adapter, shapes)
        if problems:
            raise AdapterMismatchError("\n  ".join([f"{name!r} does not fit", *problems[:8]]))
        if is_additive(adapter.config.type):
            return
        refused = {weights[site].dtype for site in adapter.sites} - set(_FOLDABLE)
        if refused:
            raise AdapterError(
                f"{name!r} is {adapter.config.type}: its magnitudes have to be folded into the "
                f"weights, which {refused.pop()} would round away. Load the model in float32 or "
                "float16."
            )

    @torch.no_grad()
    def _refresh(self, names: Iterable[str]) -> None:
        sites = sorted({site for name in names for site in self._adapters[name].tensors})
        pairs = [(self._adapters[name], self._strengths[name]) for name in self._adapters]
        for site in sites:
            terms = terms_of(site, pairs)
            if _weight(self._layers[site]).dtype in _FOLDABLE:
                self._fold(site, terms)
            else:
                self._attach(site, terms)

    def _fold(self, site: str, terms: Sequence[Term]) -> None:
        weight = _weight(self._layers[site])
        kept = self._bases.get(site)
        if kept is not None and kept.dtype != weight.dtype:
            raise AdapterError(
                f"the model was cast to {weight.dtype} while adapters were folded into it as "
                f"{kept.dtype}. Unload them before casting."
            )
        if not terms:
            base = self._bases.pop(site, None)
            if base is not None:
                weight.copy_(base)
            return
        if site not in self._bases:
            self._bases[site] = weight.detach().to(self._keep_on or weight.device, copy=True)
        base = self._bases[site].to(weight.device)
        effective = effective_weight(base, terms)
        weight.copy_(round_to(effective, dtype=weight.dtype, site=site))

    def _attach(self, site: str, terms: Sequence[Term]) -> None:
        branch = self._branches.pop(site, None)
        if branch is not None:
            branch.remove()
        if not terms:
            return
        layer = self._layers[site]
        factors = [
            low_rank_factors(
                _weight(layer),
                term.adapter.tensors[site],
                adapter_type=term.adapter.config.type,
                scale=term.strength * term.adapter.scale(site),
            )
            for term in terms
        ]
        self._branches[site] = LowRankBranch(layer, factors)


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight
