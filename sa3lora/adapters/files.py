"""Adapter files in the official single-file layout: read strictly, write whole."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sa3lora.adapters.config import TENSORS, AdapterConfig
from sa3lora.adapters.container import MEND, encode, load_tensor, read_header, tensor_bytes
from sa3lora.adapters.layout import Axis, Layout, key_of, resolve_layout
from sa3lora.errors import AdapterError
from sa3lora.runs import write_bytes_atomic

CONFIG_KEY = "lora_config"
_SHOWN_PROBLEMS = 20
# What torch.load raises on bytes that are no pickle depends on the bytes.
_UNPICKLING = (
    pickle.UnpicklingError, EOFError, RuntimeError, LookupError, ValueError, TypeError,
    AttributeError, AssertionError, OverflowError,
)  # fmt: skip
_FLOATS = ("F16", "BF16", "F32", "F64")

SiteTensors = dict[str, Tensor]


@dataclass(frozen=True)
class AdapterFile:
    """One adapter in memory: float32 tensors by site, what it is, and the header's other strings.

    Tensors are matrices and vectors as in the file, also for convolutions.
    """

    config: AdapterConfig
    tensors: Mapping[str, SiteTensors]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def sites(self) -> list[str]:
        """Names of the layers it changes, sorted."""
        return sorted(self.tensors)

    def rank(self, site: str) -> int:
        """Rank at one site, from its tensors."""
        tensors = self.tensors[site]
        return (tensors["M_xs"] if "M_xs" in tensors else tensors["lora_A"]).shape[0]

    def scale(self, site: str) -> float:
        """Factor of the low-rank product at one site: alpha / rank."""
        return self.config.scale(self.rank(site))

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 of what the adapter does: type, scale and tensors, not patterns or other strings.

        It orders the terms of a stack, so that the order of loading moves no bit.
        """
        digest = hashlib.sha256()
        config = {"type": self.config.type, "r": self.config.r, "alpha": self.config.alpha}
        digest.update(json.dumps(config, sort_keys=True).encode())
        for site in self.sites:
            for name in sorted(self.tensors[site]):
                tensor = self.tensors[site][name].float()
                digest.update(f"\0{site}\0{name}\0{tuple(tensor.shape)}\0".encode())
                digest.update(tensor_bytes(tensor))
        return digest.hexdigest()


def read_adapter(path: str | os.PathLike[str], *, legacy_axis: Axis | None = None) -> AdapterFile:
    """Read an adapter of any of the eight types, refusing whatever is not exactly one.

    `.safetensors` files may come from this project or the released tools, with or without header.
    A `.ckpt` is unpickled with tensors and plain containers allowed and nothing else.

    Args:
        path: The file.
        legacy_axis: What magnitudes scale in an old file that does not say: "rows" or "cols".

    Raises:
        AdapterError: Listing every unknown, missing, misshapen or non-finite tensor.
    """
    file = Path(path)
    adapter, problems = _read(file, legacy_axis)
    if adapter is None:
        raise AdapterError(_listing(file, problems))
    return adapter


def _read(file: Path, legacy_axis: Axis | None) -> tuple[AdapterFile | None, list[str]]:
    load = _load_safetensors if file.suffix == ".safetensors" else _load_pickle
    header, metadata, stored = load(file)
    shapes = {key: tuple(tensor.shape) for key, tensor in stored.items()}
    layout, problems = resolve_layout(header, shapes, legacy_axis=legacy_axis)
    problems += _value_problems(stored)
    if problems or layout is None:
        return None, problems
    try:
        config = AdapterConfig.from_header(header, adapter_type=layout.type, r=layout.r)
    except AdapterError as error:
        return None, [str(error)]
    return AdapterFile(config, _place(stored, layout), metadata), []


def validate_adapter(path: str | os.PathLike[str], *, check_values: bool = False) -> list[str]:
    """List every problem of an adapter file; an empty list means `read_adapter` takes it.

    Only the header is read, unless `check_values` asks for the search of non-finite values.
    """
    file = Path(path)
    try:
        if file.suffix != ".safetensors":
            return _read(file, None)[1]
        problems = _header_problems(file)
        return _read(file, None)[1] if check_values and not problems else problems
    except AdapterError as error:
        return [str(error)]


def _header_problems(file: Path) -> list[str]:
    table = read_header(file)
    header, _ = _split_metadata(file, table.metadata)
    shapes = {key: entry.shape for key, entry in table.entries.items()}
    layout, problems = resolve_layout(header, shapes)
    problems += _dtype_problems({key: entry.dtype for key, entry in table.entries.items()})
    if layout is not None:
        try:
            AdapterConfig.from_header(header, adapter_type=layout.type, r=layout.r)
        except AdapterError as error:
            problems.append(str(error))
    return problems


def write_adapter(
    path: str | os.PathLike[str],
    adapter: AdapterFile,
    *,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> None:
    """Write the official single-file layout, complete or not at all; equal input, equal bytes.

    Raises:
        AdapterError: If the file exists and `overwrite` is off, its name does not end in
            `.safetensors`, or a value is not finite in `dtype`.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        raise AdapterError(
            f"{file}: an adapter file must be called NAME.safetensors. Give another name."
        )
    if file.exists() and not overwrite:
        raise AdapterError(f"{file} exists already. Pass --force to replace it, or another name.")
    tensors = {key: tensor.to(dtype) for key, tensor in flat_tensors(adapter).items()}
    problems = _value_problems(tensors)
    if problems:
        raise AdapterError(_listing(file, problems))
    metadata = {**adapter.metadata, CONFIG_KEY: adapter.config.to_json()}
    write_bytes_atomic(file, encode(tensors, metadata))


def flat_tensors(adapter: AdapterFile) -> dict[str, Tensor]:
    """Give the tensors by their keys in a file."""
    return dict(_flatten(adapter.tensors))


def _flatten(tensors: Mapping[str, SiteTensors]) -> Iterator[tuple[str, Tensor]]:
    for site in sorted(tensors):
        for name in sorted(tensors[site]):
            yield key_of(site, name), tensors[site][name]


def _load_safetensors(file: Path) -> tuple[dict[str, Any], dict[str, str], dict[str, Tensor]]:
    table = read_header(file)
    header, metadata = _split_metadata(file, table.metadata)
    problems = _dtype_problems({key: entry.dtype for key, entry in table.entries.items()})
    if problems:
        raise AdapterError(_listing(file, problems))
    with open(file, "rb") as stream:
        stored = {key: load_tensor(stream, table, key) for key in table.entries}
    return header, metadata, stored


def _load_pickle(file: Path) -> tuple[dict[str, Any], dict[str, str], dict[str, Tensor]]:
    if not file.is_file():
        reason = (
            "is a folder. Name a file in it" if file.is_dir() else "no such file. Check the path"
        )
        raise AdapterError(f"{file}: {reason}.")
    if file.stat().st_size == 0:
        raise AdapterError(f"{file}: 0 bytes. {MEND}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except _UNPICKLING as error:
        # What torch says is left out: it advises to open the file without its guard.
        raise AdapterError(
            f"{file}: not a checkpoint of plain tensors, and nothing else is opened. "
            "Name an adapter, NAME.safetensors or a .ckpt of the released tools."
        ) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    header = content.get(CONFIG_KEY) or {} if isinstance(content, dict) else {}
    if not isinstance(state, dict) or not isinstance(header, dict):
        raise AdapterError(f"{file}: must hold a dict with state_dict and lora_config. {MEND}")
    strange = [f"{key}: not a tensor" for key, v in state.items() if not isinstance(v, Tensor)]
    strange += [
        f"{key}: must be floating point, got {value.dtype}"
        for key, value in state.items()
        if isinstance(value, Tensor) and not value.is_floating_point()
    ]
    if strange:
        raise AdapterError(_listing(file, strange))
    return header, {}, {str(key): value for key, value in state.items()}


def _split_metadata(
    file: Path, strings: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    text = strings.get(CONFIG_KEY, "{}")
    try:
        header = json.loads(text)
    except ValueError as error:
        raise AdapterError(f"{file}: header string {CONFIG_KEY} is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise AdapterError(f"{file}: header string {CONFIG_KEY} must be a JSON object, got {text}")
    return header, {key: value for key, value in strings.items() if key != CONFIG_KEY}


def _place(stored: Mapping[str, Tensor], layout: Layout) -> dict[str, SiteTensors]:
    placed: dict[str, SiteTensors] = {}
    for key, (site, name) in layout.places.items():
        tensor = stored[key].to(torch.float32)
        if name.startswith("magnitude"):
            tensor = tensor.reshape(-1)
        placed.setdefault(site, {})[name] = tensor.contiguous()
    return {
        site: {name: placed[site][name] for name in TENSORS[layout.type]} for site in sorted(placed)
    }


def _dtype_problems(dtypes: Mapping[str, str]) -> list[str]:
    return [
        f"{key}: must be floating point ({', '.join(_FLOATS)}), got {name}"
        for key, name in sorted(dtypes.items())
        if name not in _FLOATS
    ]


def _value_problems(tensors: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{key}: {count} of {tensor.numel()} values are not finite in {tensor.dtype}"
        for key, tensor in tensors.items()
        if (count := int((~torch.isfinite(tensor)).sum()))
    ]


def _listing(file: Path, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"{file}: {problems[0]}"
    shown = problems[:_SHOWN_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more; see sa3lora validate {file}")
    return "\n  ".join([f"{file} has {len(problems)} problems", *shown])
