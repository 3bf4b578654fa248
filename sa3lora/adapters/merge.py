"""One adapter from several: exact at the sum of their ranks, or the nearest of a given rank."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sa3lora.adapters.compat import base_name
from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.effective import Term, terms_of
from sa3lora.adapters.exact import exact_site, exact_type, plain_factors
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.header import PREFIX
from sa3lora.adapters.lowrank import LowRank, fill_rank, truncate_matrix, truncate_product
from sa3lora.adapters.methods import Method, merged_change
from sa3lora.adapters.weights import Weights
from sa3lora.errors import AdapterError, AdapterMismatchError

_LOGGER = logging.getLogger(__name__)

Weighted = tuple[AdapterFile, float]
_SEPARATOR = "; "

# Header strings that stay where all agree, and those that are put one after another.
_COMMON = (
    *(f"{PREFIX}{key}" for key in ("version", "base_id", "dit_hash", "ae_hash")),
    *(f"modelspec.{key}" for key in ("sai_model_spec", "architecture")),
)
_JOINED = (
    *(f"{PREFIX}{key}" for key in ("trigger", "licence")),
    *(f"modelspec.{key}" for key in ("title", "license", "trigger_phrase", "tags")),
)


@dataclass(frozen=True)
class Lost:
    """What of a layer's change a lower rank leaves out: squared norms of the whole and of it."""

    energy: float
    lost: float

    @property
    def share(self) -> float:
        """Lost share of the energy, 0 where nothing changes."""
        return self.lost / self.energy if self.energy > 0 else 0.0


def needs_weights(adapters: Sequence[Weighted]) -> bool:
    """Tell whether merging exactly asks for the base weights: not for plain lora."""
    return {adapter.config.type for adapter, _ in adapters} != {"lora"}


def merge_adapters(adapters: Sequence[Weighted], *, weights: Weights | None = None) -> AdapterFile:
    """Combine adapters, each at its strength, into one that does exactly the same.

    A is stacked, B is stacked with strength and alpha / rank multiplied in, and the result has
    alpha = rank; see `exact` for magnitudes. Ranks, alphas and sites may differ; strengths may be
    negative. Where fewer adapters act than elsewhere, zeros fill up to one rank, since the
    released tools know only one. The order of the list moves no bit.

    Args:
        adapters: Adapters with their strengths. Strength 0 leaves one out.
        weights: Base weights, for all but plain lora.

    Raises:
        AdapterError: If no one adapter can do what these do, a strength is not finite, or nothing
            would be left.
        AdapterMismatchError: If a layer has another size in another adapter.
    """
    active = _active(adapters)
    types = [adapter.config.type for adapter, _ in active]
    kind = exact_type(types)
    if kind is None or (weights is None and needs_weights(active)):
        raise AdapterError(
            f"no one adapter does what {' and '.join(sorted(set(types)))} do together; pass --rank "
            "R for the nearest of rank R, or --into-base, which takes any type"
        )
    sites = sorted({site for adapter, _ in active for site in adapter.tensors})
    ranks = {
        site: sum(adapter.rank(site) for adapter, _ in active if site in adapter.tensors)
        for site in sites
    }
    r = max(ranks.values())
    tensors = {}
    for site in sites:
        check_sizes(site, active)
        if weights is None or not needs_weights(active):
            tensors[site] = _merge_plain(site, active, r=r)
        else:
            tensors[site] = exact_site(
                weights(site), terms_of(site, active), adapter_type=kind, rank=r
            )
    return merged_file(active, tensors, adapter_type=kind, r=r)


@torch.no_grad()
def merge_to_rank(
    adapters: Sequence[Weighted], rank: int, *, weights: Weights, method: Method
) -> tuple[AdapterFile, dict[str, Lost]]:
    """Combine adapters of any types into the nearest `lora` of a rank, by singular values.

    Returns:
        The adapter, and what each layer lost.

    Raises:
        AdapterError: As `merge_adapters`.
    """
    active = _active(adapters)
    tensors, lost = {}, {}
    for site in sorted({site for adapter, _ in active for site in adapter.tensors}):
        check_sizes(site, active)
        found = low_rank_change(weights(site), terms_of(site, active), rank, method=method)
        down, up = fill_rank(found.down, found.up, rank)
        tensors[site] = {"lora_A": down, "lora_B": up}
        lost[site] = Lost(found.energy, found.lost)
    return merged_file(active, tensors, adapter_type="lora", r=rank), lost


def low_rank_change(weight: Tensor, terms: Sequence[Term], rank: int, *, method: Method) -> LowRank:
    """Give the nearest change of a rank for what all terms do to a weight together."""
    plain = all(term.adapter.config.type in ("lora", "lora-xs") for term in terms)
    if plain and method.name == "sum":
        factors = [plain_factors(weight, term) for term in terms]
        up = torch.cat(
            [term.strength * up for term, (_, up) in zip(terms, factors, strict=True)], dim=1
        )
        if up.shape[1] <= min(weight.flatten(1).shape):
            return truncate_product(torch.cat([down for down, _ in factors]), up, rank)
    return truncate_matrix(merged_change(weight, terms, method).flatten(1), rank)


def _active(adapters: Sequence[Weighted]) -> list[Weighted]:
    for _, strength in adapters:
        if not torch.isfinite(torch.tensor(float(strength))):
            raise AdapterError(f"strengths must be finite, got {strength}")
    active = [(adapter, float(strength)) for adapter, strength in adapters if strength != 0.0]
    if len(active) < len(adapters):
        _LOGGER.warning("%d adapters at strength 0 are left out", len(adapters) - len(active))
    if not active:
        raise AdapterError(
            "nothing to merge: every strength is 0. Give one a strength other than 0."
        )
    return sorted(active, key=lambda pair: (pair[0].content_hash, pair[1]))


def check_sizes(site: str, adapters: Sequence[Weighted]) -> None:
    """Refuse adapters that disagree about the size of a layer.

    Raises:
        AdapterMismatchError: Naming the layer.
    """
    sizes = {
        (tensors["lora_B"].shape[0], tensors["lora_A"].shape[1])
        for adapter, _ in adapters
        if "lora_A" in (tensors := adapter.tensors.get(site, {}))
    }
    if len(sizes) > 1:
        found = " and ".join(f"{fan_out} x {fan_in}" for fan_out, fan_in in sorted(sizes))
        raise AdapterMismatchError(
            f"the adapters belong to models of other sizes: {site} is {found}.\n"
            "Merge adapters of one base."
        )


def _merge_plain(site: str, adapters: Sequence[Weighted], *, r: int) -> dict[str, Tensor]:
    present = [(adapter, strength) for adapter, strength in adapters if site in adapter.tensors]
    down = torch.cat([adapter.tensors[site]["lora_A"] for adapter, _ in present])
    # The factor in float64: a strength like 0.7 is otherwise rounded before it is used.
    up = torch.cat(
        [
            (adapter.tensors[site]["lora_B"].double() * (strength * adapter.scale(site))).float()
            for adapter, strength in present
        ],
        dim=1,
    )
    down, up = fill_rank(down, up, r)
    return {"lora_A": down, "lora_B": up}


def merged_file(
    active: Sequence[Weighted],
    tensors: Mapping[str, dict[str, Tensor]],
    *,
    adapter_type: str,
    r: int,
) -> AdapterFile:
    """Put merged tensors into an adapter that tells what it was made of."""
    include, exclude = _patterns([adapter for adapter, _ in active], sites=list(tensors))
    config = AdapterConfig(
        type=adapter_type, r=r, lora_alpha=float(r), include=include, exclude=exclude
    )
    return AdapterFile(config, tensors, _metadata(active))


def _patterns(
    adapters: Sequence[AdapterFile], *, sites: list[str]
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Keep common patterns if every file has the same sites by them; else name the sites."""
    first = adapters[0]
    if all(
        (other.config.include, other.config.exclude, other.sites)
        == (first.config.include, first.config.exclude, sites)
        for other in adapters
    ):
        return first.config.include, first.config.exclude
    return tuple(sites), None


def _metadata(adapters: Sequence[Weighted]) -> dict[str, str]:
    files = [adapter for adapter, _ in adapters]
    merged = [
        {
            "content_hash": adapter.content_hash,
            "strength": strength,
            "title": adapter.metadata.get("modelspec.title"),
            "base_id": base_name(adapter),
        }
        for adapter, strength in adapters
    ]
    metadata = {f"{PREFIX}merged_from": json.dumps(merged)}
    for key in _COMMON:
        metadata |= _common(key, files)
    for key in _JOINED:
        metadata |= _joined(key, files)
    return metadata


def _common(key: str, files: Iterable[AdapterFile]) -> dict[str, str]:
    values = {file.metadata.get(key) for file in files}
    value = values.pop() if len(values) == 1 else None
    return {} if value is None else {key: value}


def _joined(key: str, files: Iterable[AdapterFile]) -> dict[str, str]:
    values = dict.fromkeys(file.metadata[key] for file in files if file.metadata.get(key))
    return {key: _SEPARATOR.join(values)} if values else {}
