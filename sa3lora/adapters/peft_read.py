"""PEFT folders as adapters: for our own module tree, or for the models of diffusers.

Below `base_model.model.` the keys are the site names of a module with children `model` and
`conditioners`; or the names of diffusers' transformer, in a folder `transformer/`, and of its
duration embedder, in `conditioner/`, with fused rows in diffusers' order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sa3lora.adapters.foreign import matrix_shape, split_key
from sa3lora.adapters.layout import key_of
from sa3lora.adapters.names import PARTS, Part, from_diffusers, our_rows
from sa3lora.adapters.sources import (
    AdapterSource,
    Origin,
    common_alpha,
    load_origins,
    open_table,
    read_json,
)
from sa3lora.errors import AdapterError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
KEY_PREFIX = "base_model.model."

_MAX_PATTERNS = 1000
# Names, escapes and anchors; without repetition and choice no pattern can take long.
_HARMLESS = re.compile(r"[\w.\\^$-]{1,512}")
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "alora_invocation_tokens": (None, []),
}
_UNDERSTOOD = ("use_rslora", "use_dora")


_Table = Sequence[tuple[re.Pattern[str], int | float]]


@dataclass(frozen=True)
class _Settings:
    """What `adapter_config.json` says about scale and rank."""

    r: int
    alpha: float
    ranks: _Table
    alphas: _Table
    rslora: bool
    dora: bool

    def rank_of(self, name: str) -> int:
        return int(_matched(self.ranks, name, default=self.r))

    def alpha_of(self, name: str) -> float:
        """Alpha that gives the layer's scale when divided by its rank."""
        alpha = float(_matched(self.alphas, name, default=self.alpha))
        return alpha * math.sqrt(self.rank_of(name)) if self.rslora else alpha


def is_peft_folder(folder: Path) -> bool:
    """Tell whether a folder is one PEFT adapter, or one for each model of diffusers."""
    return any((folder / part / CONFIG_NAME).is_file() for part in ("", *PARTS))


def peft_source(folder: Path) -> AdapterSource:
    """Look at a PEFT folder of either naming.

    Raises:
        AdapterError: If a file is broken, or PEFT's settings are of a kind that SA3 cannot hold.
    """
    if (folder / CONFIG_NAME).is_file():
        return _join([_Part(folder, None)])
    return _join([_Part(folder / p, p) for p in PARTS if (folder / p / CONFIG_NAME).is_file()])


class _Part:
    """One PEFT adapter of a folder."""

    def __init__(self, folder: Path, part: Part | None) -> None:
        self.file = folder / WEIGHTS_NAME
        self.settings = _settings(folder / CONFIG_NAME)
        self.header, self.metadata, self.table = open_table(self.file)
        self.problems: list[str] = []
        self.origins: dict[str, Origin] = {}
        self.alphas: dict[str, float] = {}
        self.ranks: list[int] = []
        self._place(part)

    def _place(self, part: Part | None) -> None:
        names: dict[str, dict[str, str]] = {}
        for key in sorted(self.table.entries):
            found = split_key(key.removesuffix(".weight")) or split_key(key)
            if not key.startswith(KEY_PREFIX) or found is None or found[1] == "alpha":
                self.problems.append(f"{key}: not a tensor of a LoRA in PEFT")
                continue
            names.setdefault(found[0].removeprefix(KEY_PREFIX), {})[found[1]] = key
        for name, keys in names.items():
            site = _site(name, part)
            if site is None:
                self.problems.append(f"{name}: no layer of an SA3 model")
            else:
                self._place_site(site, name, keys=keys)

    def _place_site(self, site: str, name: str, *, keys: Mapping[str, str]) -> None:
        shapes = {
            tensor: matrix_shape(self.table.entries[key].shape, tensor=tensor)
            for tensor, key in keys.items()
        }
        order = None
        down, up = shapes.get("lora_A", ()), shapes.get("lora_B", ())
        if len(down) == len(up) == 2 and not name.startswith(("model.", "conditioners.")):
            order = our_rows(site, up[0], down[1])
        if len(down) == 2:
            self.ranks.append(down[0])
            self.alphas[site] = self.settings.alpha_of(name)
            if down[0] != self.settings.rank_of(name):
                told = self.settings.rank_of(name)
                self.problems.append(f"{name}: rank {down[0]}, {CONFIG_NAME} says {told}")
        for tensor, key in keys.items():
            rows = order if tensor in ("lora_B", "magnitude") else None
            self.origins[key_of(site, tensor)] = Origin(key, shapes[tensor], order=rows)


def _join(parts: list[_Part]) -> AdapterSource:
    alphas = {site: alpha for part in parts for site, alpha in part.alphas.items()}
    ranks = [rank for part in parts for rank in part.ranks]
    told = parts[0].settings.r
    r = told if told in ranks else max(ranks, default=1)
    alpha, factors = common_alpha(alphas, r=r) if alphas else (float(r), {})
    dora = {part.settings.dora for part in parts}
    problems = [problem for part in parts for problem in part.problems]
    if len(dora) > 1:
        problems.append("one of its two folders is DoRA, the other is not")
    notes = []
    if any(factor != 1.0 for factor in factors.values()):
        notes.append("its layers differ in alpha, which went into their lora_B")
    joined = [(part, _scaled(part.origins, factors)) for part in parts]
    header = {**parts[0].header, "rank": r, "alpha": alpha}
    header["adapter_type"] = "dora-rows" if dora == {True} else "lora"
    return AdapterSource(
        header=header,
        metadata={k: v for k, v in parts[0].metadata.items() if k != "format"},
        shapes={key: origin.shape for _, origins in joined for key, origin in origins.items()},
        load=lambda: _load(joined),
        dtypes={
            key: part.table.entries[origin.key].dtype
            for part, origins in joined
            for key, origin in origins.items()
        },
        notes=notes,
        problems=problems,
    )


def _load(joined: list[tuple[_Part, dict[str, Origin]]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for part, origins in joined:
        found |= load_origins(part.file, part.table, origins)
    return found


def _scaled(origins: Mapping[str, Origin], factors: Mapping[str, float]) -> dict[str, Origin]:
    scaled = {}
    for key, origin in origins.items():
        site, tensor = key.split(".parametrizations.")[0], key.rsplit(".", 1)[-1]
        factor = factors.get(site, 1.0) if tensor == "lora_B" else 1.0
        scaled[key] = Origin(origin.key, origin.shape, order=origin.order, factor=factor)
    return scaled


def _site(name: str, part: Part | None) -> str | None:
    if part is not None:
        return from_diffusers(part, name)
    if name.startswith(("model.", "conditioners.")):
        return name
    return from_diffusers("transformer", name) or from_diffusers("conditioner", name)


def _settings(file: Path) -> _Settings:
    content = read_json(file)
    kind = content.get("peft_type")
    problems = [] if kind == "LORA" else [f"peft_type must be LORA, got {str(kind)[:40]!r}"]
    for key, neutral in _NEUTRAL.items():
        if content.get(key) not in (*neutral, {}):
            problems.append(f"{key} {str(content[key])[:40]} has no place in an SA3 adapter")
    problems += [
        f"{key} has no place in an SA3 adapter"
        for key, value in content.items()
        if key.startswith("use_") and value and key not in _UNDERSTOOD
    ]
    r, alpha = content.get("r"), content.get("lora_alpha")
    if not _is_number(r) or not isinstance(r, int) or r < 1:
        problems.append(f"r must be a positive integer, got {str(r)[:40]}")
    if not _is_number(alpha):
        problems.append(f"lora_alpha must be a finite number, got {str(alpha)[:40]}")
    tables = {key: _table(content.get(key) or {}) for key in ("rank_pattern", "alpha_pattern")}
    problems += [
        f"{key} must map layer names, without repetition or choice, to numbers"
        for key, table in tables.items()
        if table is None
    ]
    if problems:
        raise AdapterError("\n  ".join([f"{file} cannot be an SA3 adapter", *problems]))
    assert isinstance(r, int)
    assert isinstance(alpha, int | float)
    rslora, dora = bool(content.get("use_rslora")), bool(content.get("use_dora"))
    ranks, alphas = tables["rank_pattern"] or [], tables["alpha_pattern"] or []
    return _Settings(r, float(alpha), ranks, alphas, rslora=rslora, dora=dora)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 1e30 if isinstance(value, int) else math.isfinite(value)


def _table(given: object) -> _Table | None:
    """Compile a table of patterns as PEFT reads them; None if it is none."""
    if not isinstance(given, dict) or len(given) > _MAX_PATTERNS:
        return None
    table = []
    for key, number in given.items():
        if not _HARMLESS.fullmatch(key) or not _is_number(number) or number <= 0:
            return None
        try:
            table.append((re.compile(rf"(.*\.)?({key})$"), number))
        except re.error:
            return None
    return table


def _matched(table: _Table, name: str, *, default: float) -> float:
    """Look a layer up as PEFT does: the first pattern that its name ends with."""
    return next((value for pattern, value in table if pattern.match(name)), default)
