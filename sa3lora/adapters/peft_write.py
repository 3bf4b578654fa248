"""Write PEFT folders that plain `PeftModel.from_pretrained` opens, for our model or diffusers'.

PEFT holds two of our types: `lora`, and `dora-rows` as its DoRA. The header strings of the official
layout go along, so that reading the folder gives the very same adapter back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sa3lora.adapters.compat import base_name
from sa3lora.adapters.config import LOKR
from sa3lora.adapters.container import write_file
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.names import Part, diffusers_rows, reorder_rows, to_diffusers
from sa3lora.adapters.peft_read import CONFIG_NAME, KEY_PREFIX, WEIGHTS_NAME
from sa3lora.adapters.sources import CONFIG_KEY
from sa3lora.errors import AdapterError
from sa3lora.runs import write_json_atomic

#: Types of ours that PEFT computes exactly.
PEFT_TYPES = ("lora", "dora-rows")


def write_peft_folder(
    out: Path,
    adapter: AdapterFile,
    *,
    kernels: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a PEFT folder for a module with children `model` and `conditioners`.

    Args:
        out: Folder to write into.
        adapter: Of a type in `PEFT_TYPES`.
        kernels: For sites that are convolutions, the shape of one output's weight.
        dtype: Of the stored tensors.
    """
    names = {site: site for site in adapter.sites}
    _write(out, adapter, names=names, kernels=kernels, dtype=dtype, diffusers=False)


def write_diffusers_folder(
    out: Path,
    adapter: AdapterFile,
    *,
    kernels: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `transformer/` and `conditioner/`; arguments as in `write_peft_folder`.

    Raises:
        AdapterError: If diffusers has no such layer; the message names it.
    """
    parts: dict[Part, dict[str, str]] = {}
    missing = []
    for site in adapter.sites:
        found = to_diffusers(site)
        if found is None:
            missing.append(site)
        else:
            parts.setdefault(found[0], {})[site] = found[1]
    if missing:
        raise AdapterError("\n  ".join(["the models of diffusers have no such layers", *missing]))
    for part, names in parts.items():
        _write(out / part, adapter, names=names, kernels=kernels, dtype=dtype, diffusers=True)


def check_peft_type(adapter: AdapterFile) -> None:
    """Refuse a type that PEFT lacks.

    Raises:
        AdapterError: With what can be done instead.
    """
    if adapter.config.type == LOKR:
        raise AdapterError(
            "lokr is a PEFT folder already: copy it. Or pass --approximate --rank R for the "
            "nearest lora of rank R, whose error is then told."
        )
    if adapter.config.type not in PEFT_TYPES:
        raise AdapterError(
            f"PEFT has no {adapter.config.type}: it would load the file as an ordinary LoRA and "
            "only warn. Pass --approximate --rank R for the nearest lora of rank R, whose error is "
            "then told."
        )


def _write(
    out: Path,
    adapter: AdapterFile,
    *,
    names: Mapping[str, str],
    kernels: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    diffusers: bool,
) -> None:
    tensors: dict[str, Tensor] = {}
    for site, name in names.items():
        own = dict(adapter.tensors[site])
        if diffusers:
            order = diffusers_rows(site, own["lora_B"].shape[0], own["lora_A"].shape[1])
            for tensor in ("lora_B", "magnitude"):
                if tensor in own:
                    own[tensor] = reorder_rows(own[tensor], order)
        shaped = _shaped(own, kernels.get(site))
        tensors |= {f"{KEY_PREFIX}{name}.{key}": value for key, value in shaped.items()}
    stored = {key: value.to(dtype).contiguous() for key, value in tensors.items()}
    metadata = {**adapter.metadata, CONFIG_KEY: adapter.config.to_json(), "format": "pt"}
    write_file(out / WEIGHTS_NAME, stored, metadata)
    write_json_atomic(out / CONFIG_NAME, _config(adapter, names))


def _shaped(tensors: Mapping[str, Tensor], kernel: tuple[int, ...] | None) -> dict[str, Tensor]:
    """Name and shape the tensors of one layer as PEFT stores them."""
    down, up = tensors["lora_A"], tensors["lora_B"]
    magnitude = tensors.get("magnitude")
    if kernel is not None:
        down = down.reshape(down.shape[0], *kernel)
        up = up.reshape(*up.shape, *(1 for _ in kernel[1:]))
        if magnitude is not None:
            magnitude = magnitude.reshape(1, -1, *(1 for _ in kernel[1:]))
    shaped = {"lora_A.weight": down, "lora_B.weight": up}
    return shaped if magnitude is None else {**shaped, "lora_magnitude_vector": magnitude}


def _config(adapter: AdapterFile, names: Mapping[str, str]) -> dict[str, Any]:
    config = adapter.config
    alpha = int(config.alpha) if config.alpha.is_integer() else config.alpha
    other = {site: adapter.rank(site) for site in names if adapter.rank(site) != config.r}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name(adapter),
        "inference_mode": True,
        "r": config.r,
        "lora_alpha": alpha,
        "lora_dropout": config.lora_dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": config.type == "dora-rows",
        "use_rslora": False,
        # One pattern, matched as a whole: in a list `proj_in` would also mean every block's own.
        "target_modules": "|".join(re.escape(name) for name in sorted(names.values())),
        "rank_pattern": {
            f"^{re.escape(names[site])}": rank for site, rank in sorted(other.items())
        },
        "alpha_pattern": {},
    }
