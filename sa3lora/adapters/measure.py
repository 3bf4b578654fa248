"""How much an adapter changes, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sa3lora.adapters.deltas import delta
from sa3lora.adapters.files import AdapterFile

_BLOCK = re.compile(r"^model\.transformer\.layers\.\d+\.")


@dataclass(frozen=True)
class Change:
    """Norms of the change at strength 1 over all layers of one kind.

    `norm` is the Frobenius norm of all of them together; `relative` is that over the norm of the
    base weights, None where they are not known.
    """

    kind: str
    num_sites: int
    norm: float | None
    relative: float | None


def kind_of(site: str) -> str:
    """Name a layer without its block: `self_attn.to_qkv`, `to_cond_embed.0`."""
    return _BLOCK.sub("", site).removeprefix("model.")


def measure_change(
    adapter: AdapterFile, weights: Mapping[str, Tensor] | None = None
) -> list[Change]:
    """Measure every kind of layer, in the order of names.

    Args:
        adapter: Of any type.
        weights: Base weight by site. Without them only plain `lora` can be measured, and not in
            relation to the base; other types get None.
    """
    kinds: dict[str, list[str]] = {}
    for site in adapter.sites:
        kinds.setdefault(kind_of(site), []).append(site)
    return [
        _measure(adapter, kind, sites=sites, weights=weights)
        for kind, sites in sorted(kinds.items())
    ]


def _measure(
    adapter: AdapterFile, kind: str, *, sites: list[str], weights: Mapping[str, Tensor] | None
) -> Change:
    if weights is None:
        if adapter.config.type != "lora":
            return Change(kind, len(sites), None, None)
        norm = sum(_product_norm(adapter, site) ** 2 for site in sites) ** 0.5
        return Change(kind, len(sites), norm, None)
    changed, base = 0.0, 0.0
    for site in sites:
        change = delta(
            weights[site],
            adapter.tensors[site],
            adapter_type=adapter.config.type,
            scale=adapter.scale(site),
        )
        changed += float(torch.linalg.vector_norm(change.double())) ** 2
        base += float(torch.linalg.vector_norm(weights[site].double())) ** 2
    relative = (changed / base) ** 0.5 if base > 0 else None
    return Change(kind, len(sites), changed**0.5, relative)


def _product_norm(adapter: AdapterFile, site: str) -> float:
    """Norm of scale * B A through r x r matrices, never forming the product."""
    tensors = adapter.tensors[site]
    down, up = tensors["lora_A"].double(), tensors["lora_B"].double()
    squared: Tensor = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0)
    return abs(adapter.scale(site)) * squared.sqrt().item()
