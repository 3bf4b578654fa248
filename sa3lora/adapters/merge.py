"""One adapter from several: exact, at the sum of their ranks."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sa3lora.adapters.compat import base_name
from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.header import PREFIX
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


def merge_adapters(adapters: Sequence[Weighted]) -> AdapterFile:
    """Combine plain `lora` adapters, each at its strength, into one that does the same.

    A is stacked, B is stacked with strength and alpha / rank multiplied in, and the result has
    alpha = rank. Ranks, alphas and sites may differ; strengths may be negative. Where fewer
    adapters act than elsewhere, zeros fill up to one rank, since the released tools know only one.
    The order of the list moves no bit.

    Args:
        adapters: Adapters with their strengths. Strength 0 leaves one out.

    Raises:
        AdapterError: If a type is not `lora`, a strength is not finite, or nothing would be left.
        AdapterMismatchError: If a layer has another size in another adapter.
    """
    active = _active(adapters)
    ranks = {
        site: sum(adapter.rank(site) for adapter, _ in active if site in adapter.tensors)
        for site in sorted({site for adapter, _ in active for site in adapter.tensors})
    }
    r = max(ranks.values())
    tensors = {site: _merge_site(site, active, r=r) for site in ranks}
    include, exclude = _patterns([adapter for adapter, _ in active], sites=list(ranks))
    config = AdapterConfig(type="lora", r=r, lora_alpha=float(r), include=include, exclude=exclude)
    return AdapterFile(config, tensors, _metadata(active))


def _active(adapters: Sequence[Weighted]) -> list[Weighted]:
    for adapter, strength in adapters:
        if not torch.isfinite(torch.tensor(float(strength))):
            raise AdapterError(f"strengths must be finite, got {strength}")
        if adapter.config.type != "lora":
            raise AdapterError(
                f"only plain lora adapters merge into one file, got {adapter.config.type}; "
                "any type merges into a checkpoint with --into-base"
            )
    active = [(adapter, float(strength)) for adapter, strength in adapters if strength != 0.0]
    if len(active) < len(adapters):
        _LOGGER.warning("%d adapters at strength 0 are left out", len(adapters) - len(active))
    if not active:
        raise AdapterError(
            "nothing to merge: every strength is 0. Give one a strength other than 0."
        )
    return sorted(active, key=lambda pair: (pair[0].content_hash, pair[1]))


def _merge_site(site: str, adapters: Sequence[Weighted], *, r: int) -> dict[str, Tensor]:
    present = [(adapter, strength) for adapter, strength in adapters if site in adapter.tensors]
    sizes = {
        (adapter.tensors[site]["lora_B"].shape[0], adapter.tensors[site]["lora_A"].shape[1])
        for adapter, _ in present
    }
    if len(sizes) > 1:
        found = " and ".join(f"{fan_out} x {fan_in}" for fan_out, fan_in in sorted(sizes))
        raise AdapterMismatchError(
            f"the adapters belong to models of other sizes: {site} is {found}.\n"
            "Merge adapters of one base."
        )
    down = torch.cat([adapter.tensors[site]["lora_A"] for adapter, _ in present])
    # The factor in float64: a strength like 0.7 is otherwise rounded before it is used.
    up = torch.cat(
        [
            (adapter.tensors[site]["lora_B"].double() * (strength * adapter.scale(site))).float()
            for adapter, strength in present
        ],
        dim=1,
    )
    missing = r - down.shape[0]
    if missing:
        down = torch.cat([down, down.new_zeros(missing, down.shape[1])])
        up = torch.cat([up, up.new_zeros(up.shape[0], missing)], dim=1)
    return {"lora_A": down.contiguous(), "lora_B": up.contiguous()}


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
