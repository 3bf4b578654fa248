"""Single files with the keys of other tools: kohya, ComfyUI, a PEFT file without its folder."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sa3lora.adapters.container import Entry, Header
from sa3lora.adapters.layout import key_of
from sa3lora.adapters.names import site_of
from sa3lora.adapters.sources import (
    AdapterSource,
    Origin,
    common_alpha,
    load_origins,
    read_scalar,
)

_PREFIXES = (
    "lora_unet_", "lora_transformer_", "model.diffusion_model.", "diffusion_model.",
    "base_model.model.",
)  # fmt: skip
_SUFFIXES = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_down.weight": "lora_A",
    ".lora_up.weight": "lora_B",
    ".dora_scale": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".alpha": "alpha",
}


def split_key(key: str) -> tuple[str, str] | None:
    """Split a foreign key into (name of the layer, our name of the tensor); None if it is none."""
    for suffix, tensor in _SUFFIXES.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), tensor
    return None


def is_foreign(keys: Mapping[str, Entry]) -> bool:
    """Tell whether a file's keys are those of another tool."""
    names = [split[1] for key in keys if (split := split_key(key))]
    official = any(".parametrizations." in key for key in keys)
    return not official and not {"lora_A", "lora_B"}.isdisjoint(names)


def foreign_source(file: Path, metadata: Mapping[str, str], table: Header) -> AdapterSource:
    """Understand a file by kohya's, ComfyUI's or PEFT's keys.

    Its scale is alpha / rank of each layer, 1 where a layer has no alpha.
    """
    places, problems = _places(table)
    alphas, notes = _alphas(file, table, places, problems)
    origins: dict[str, Origin] = {}
    ranks = [
        table.entries[key].shape[0]
        for (_, tensor), key in places.items()
        if tensor == "lora_A" and table.entries[key].shape
    ]
    alpha, factors = common_alpha(alphas, r=max(ranks, default=1)) if alphas else (1.0, {})
    if any(factor != 1.0 for factor in factors.values()):
        notes.append("its layers differ in alpha, which went into their lora_B")
    for (site, tensor), key in places.items():
        if tensor != "alpha":
            factor = factors.get(site, 1.0) if tensor == "lora_B" else 1.0
            origins[key_of(site, tensor)] = Origin(
                key, matrix_shape(table.entries[key].shape, tensor=tensor), factor=factor
            )
    header: dict[str, Any] = {"alpha": alpha}
    if any(key.endswith(".lora_magnitude_vector") for key in places.values()):
        header["adapter_type"] = "dora-rows"  # PEFT knows no other
    elif any(tensor == "magnitude" for _, tensor in places):
        header["adapter_type"] = "dora"
    elif places:
        header["adapter_type"] = "lora"
    return AdapterSource(
        header=header,
        metadata=metadata,
        shapes={key: origin.shape for key, origin in origins.items()},
        load=functools.partial(load_origins, file, table, origins),
        dtypes={key: table.entries[origin.key].dtype for key, origin in origins.items()},
        notes=notes,
        problems=problems,
    )


def _places(table: Header) -> tuple[dict[tuple[str, str], str], list[str]]:
    places: dict[tuple[str, str], str] = {}
    problems = []
    for key in sorted(table.entries):
        split = split_key(key)
        site = None if split is None else _site(split[0])
        if split is None or site is None:
            problems.append(f"{key}: not a tensor of an SA3 adapter")
        elif (site, split[1]) in places:
            problems.append(f"{key}: the same as {places[site, split[1]]}")
        else:
            places[site, split[1]] = key
    return places, problems


def _site(layer: str) -> str | None:
    for prefix in _PREFIXES:
        if layer.startswith(prefix):
            return site_of(layer.removeprefix(prefix))
    return site_of(layer)


def _alphas(
    file: Path, table: Header, places: Mapping[tuple[str, str], str], problems: list[str]
) -> tuple[dict[str, float], list[str]]:
    alphas: dict[str, float] = {}
    missing = 0
    for (site, tensor), key in places.items():
        if tensor != "lora_A":
            continue
        shape = table.entries[key].shape
        rank = float(shape[0]) if shape else 1.0
        given = places.get((site, "alpha"))
        alpha = rank if given is None else read_scalar(file, table, given)
        missing += given is None
        if alpha is None or not math.isfinite(alpha):
            problems.append(f"{given}: must be one finite number")
        else:
            alphas[site] = alpha
    problems += [
        f"{key}: an alpha without its layer"
        for (site, tensor), key in places.items()
        if tensor == "alpha" and (site, "lora_A") not in places
    ]
    notes = [f"{missing} layers have no alpha, so their scale is 1"] if missing else []
    return alphas, notes


def matrix_shape(shape: tuple[int, ...], *, tensor: str) -> tuple[int, ...]:
    """Take a kernel as part of the inputs, as official files do."""
    if len(shape) != 3:
        return shape
    if tensor == "magnitude":
        return (math.prod(shape),)
    return shape[0], shape[1] * shape[2]
