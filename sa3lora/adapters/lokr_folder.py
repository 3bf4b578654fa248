"""LoKr on disk: a PEFT folder that plain `PeftModel.from_pretrained` opens, and nothing else."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sa3lora.adapters.config import LOKR, AdapterConfig
from sa3lora.adapters.container import Header, load_tensor, write_file
from sa3lora.adapters.kron import KRON_TENSORS, kron_shape
from sa3lora.adapters.limits import MAX_RANK, is_name
from sa3lora.adapters.peft_read import CONFIG_NAME, KEY_PREFIX, WEIGHTS_NAME
from sa3lora.adapters.sources import CONFIG_KEY, FLOATS, open_table, read_json
from sa3lora.errors import AdapterError
from sa3lora.runs import write_json_atomic

if TYPE_CHECKING:
    from sa3lora.adapters.files import AdapterFile

_SHOWN = 20
# Settings that change what the tensors mean, and the only values that are understood.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
}


def is_lokr_folder(path: Path) -> bool:
    """Tell whether a path is a PEFT folder of type LoKr."""
    config = path / CONFIG_NAME
    return config.is_file() and read_json(config).get("peft_type") == "LOKR"


def read_lokr(folder: Path) -> tuple[AdapterConfig, dict[str, dict[str, Tensor]], dict[str, str]]:
    """Read what the folder holds: settings, tensors by site in PEFT's shapes, header strings.

    Raises:
        AdapterError: Listing everything in it that is no LoKr of an SA3 model.
    """
    file = folder / WEIGHTS_NAME
    settings = read_json(folder / CONFIG_NAME)
    header, metadata, table = open_table(file)
    places, problems = _places(table)
    problems = [*_setting_problems(settings), *problems]
    if problems:
        raise AdapterError(_listing(folder, problems))
    tensors: dict[str, dict[str, Tensor]] = {}
    with open(file, "rb") as stream:
        for key, (site, name) in places.items():
            tensor = load_tensor(stream, table, key).to(torch.float32)
            if not torch.isfinite(tensor).all():
                problems.append(f"{key}: holds values that are not finite")
            tensors.setdefault(site, {})[name] = tensor.contiguous()
    if problems:
        raise AdapterError(_listing(folder, problems))
    known = {key: value for key, value in header.items() if key not in ("rank", "adapter_type")}
    known["alpha"] = settings["alpha"]
    config = AdapterConfig.from_header(known, adapter_type=LOKR, r=settings["r"])
    factor = settings.get("decompose_factor", -1)
    config = dataclasses.replace(config, decompose_factor=factor if isinstance(factor, int) else -1)
    metadata = {key: value for key, value in metadata.items() if key != "format"}
    return config, dict(sorted(tensors.items())), metadata


def write_lokr_folder(out: Path, adapter: AdapterFile) -> Path:
    """Write settings and float32 tensors into a folder, and give the folder."""
    names = "|".join(map(re.escape, adapter.sites))
    alpha = adapter.config.alpha
    settings: dict[str, Any] = {
        "peft_type": "LOKR",
        "task_type": None,
        "base_model_name_or_path": adapter.metadata.get("sa3lora.base_id"),
        "inference_mode": True,
        "r": adapter.config.r,
        "alpha": int(alpha) if alpha.is_integer() else alpha,
        "rank_dropout": 0.0,
        "module_dropout": 0.0,
        "use_effective_conv2d": False,
        "decompose_both": any("lokr_w1_a" in group for group in adapter.tensors.values()),
        "decompose_factor": adapter.config.decompose_factor,
        "rank_dropout_scale": False,
        "init_weights": True,
        "target_modules": names,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    tensors = {
        f"{KEY_PREFIX}{site}.{name}": tensor.float().contiguous()
        for site, group in sorted(adapter.tensors.items())
        for name, tensor in group.items()
    }
    metadata = {**adapter.metadata, CONFIG_KEY: adapter.config.to_json(), "format": "pt"}
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / WEIGHTS_NAME, tensors, metadata)
    write_json_atomic(out / CONFIG_NAME, settings)
    return out


def single_file_refusal(path: Path) -> str:
    """Say why a LoKr is not written as one file, and what to do."""
    return (
        f"{path}: lokr has no form as a single file, which no tool for SA3 would understand; it is "
        "a PEFT folder. Copy that folder, or make a lora of it: sa3lora resize FOLDER --rank R."
    )


def _places(table: Header) -> tuple[dict[str, tuple[str, str]], list[str]]:
    places: dict[str, tuple[str, str]] = {}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    problems = []
    for key, entry in sorted(table.entries.items()):
        site, _, name = key.removeprefix(KEY_PREFIX).rpartition(".")
        if not key.startswith(KEY_PREFIX) or name not in KRON_TENSORS or not is_name(site):
            problems.append(f"{key}: not a tensor of a LoKr in an SA3 model")
        elif entry.dtype not in FLOATS:
            problems.append(f"{key}: must be floating point, got {entry.dtype}")
        else:
            places[key] = site, name
            shapes.setdefault(site, {})[name] = tuple(entry.shape)
    problems += [
        f"{site}: {', '.join(f'{n} {s}' for n, s in group.items())} make no Kronecker product"
        for site, group in shapes.items()
        if kron_shape(group) is None
    ]
    return places, problems if places or problems else ["holds no tensors"]


def _setting_problems(settings: Mapping[str, Any]) -> list[str]:
    r, alpha = settings.get("r"), settings.get("alpha")
    problems = []
    if not isinstance(r, int) or isinstance(r, bool) or not 1 <= r <= MAX_RANK:
        problems.append(f"r must be a positive integer, got {str(r)[:40]}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not _is_sane(alpha):
        problems.append(f"alpha must be a finite number, got {str(alpha)[:40]}")
    problems += [
        f"{key} {str(settings[key])[:40]} has no place in an SA3 adapter"
        for key, values in _PLAIN.items()
        if key in settings and settings[key] not in values
    ]
    return problems


def _is_sane(number: float) -> bool:
    return abs(number) < 1e30 if isinstance(number, int) else math.isfinite(number)


def _listing(folder: Path, problems: list[str]) -> str:
    shown = problems[:_SHOWN]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return "\n  ".join([f"{folder} cannot be an SA3 adapter", *shown])
