"""Adapter files in the official single-file layout: read strictly, write whole."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sa3lora.adapters.config import BASES, LOKR, TENSORS, AdapterConfig
from sa3lora.adapters.container import load_tensor, tensor_bytes, write_file
from sa3lora.adapters.foreign import foreign_source, is_foreign
from sa3lora.adapters.layout import Axis, Layout, key_of, resolve_layout
from sa3lora.adapters.lokr_folder import is_lokr_folder, read_lokr, single_file_refusal
from sa3lora.adapters.peft_read import CONFIG_NAME, WEIGHTS_NAME, is_peft_folder, peft_source
from sa3lora.adapters.pickled import read_pickle
from sa3lora.adapters.sources import CONFIG_KEY, FLOATS, AdapterSource, open_table
from sa3lora.errors import AdapterError

_LOGGER = logging.getLogger(__name__)
_SHOWN_PROBLEMS = 20

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
        if self.config.type == LOKR:
            return self.config.r
        return (tensors["M_xs"] if "M_xs" in tensors else tensors["lora_A"]).shape[0]

    @property
    def has_bases(self) -> bool:
        """Whether an `-xs` adapter carries the singular vectors it was trained in, everywhere."""
        return all("U" in tensors for tensors in self.tensors.values())

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

    A `.safetensors` file may come from this project, the released tools (with or without header),
    kohya or ComfyUI; a folder from PEFT, for our model or for diffusers', or of LoKr. A `.ckpt` is
    unpickled with tensors and plain containers allowed and nothing else. How a file was understood
    that does not say everything itself is logged.

    Args:
        path: The file or folder.
        legacy_axis: What magnitudes scale in an old file that does not say: "rows" or "cols".

    Raises:
        AdapterError: Listing every unknown, missing, misshapen or non-finite tensor.
    """
    file = Path(path)
    if is_lokr_folder(file):
        return AdapterFile(*read_lokr(file))
    source = _open(file)
    layout, config, problems = _check(source, legacy_axis)
    stored = {} if problems else source.load()
    problems += _value_problems(stored)
    if problems or layout is None or config is None:
        raise AdapterError(_listing(file, problems))
    for note in _notes(source, layout):
        _LOGGER.info("%s: %s", file, note)
    return AdapterFile(config, _place(stored, layout), source.metadata)


def validate_adapter(path: str | os.PathLike[str], *, check_values: bool = False) -> list[str]:
    """List every problem of an adapter; an empty list means `read_adapter` takes it.

    Only headers are read, unless `check_values` asks for the search of non-finite values.
    """
    try:
        if is_lokr_folder(Path(path)):
            read_lokr(Path(path))
            return []
        source = _open(Path(path))
        _, _, problems = _check(source, None)
        return _value_problems(source.load()) if check_values and not problems else problems
    except AdapterError as error:
        return [str(error)]


def _open(file: Path) -> AdapterSource:
    if file.is_dir():
        if not is_peft_folder(file):
            raise AdapterError(
                f"{file}: is a folder without {CONFIG_NAME}. Name an adapter file or a PEFT folder."
            )
        return peft_source(file)
    if file.name == WEIGHTS_NAME and (file.parent / CONFIG_NAME).is_file():
        return peft_source(file.parent)
    if file.suffix != ".safetensors":
        header, tensors = read_pickle(file)
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        return AdapterSource(header, {}, shapes, lambda: tensors)
    header, metadata, table = open_table(file)
    if is_foreign(table.entries):
        return foreign_source(file, metadata, table)

    def load() -> dict[str, Tensor]:
        with open(file, "rb") as stream:
            return {key: load_tensor(stream, table, key) for key in table.entries}

    shapes = {key: entry.shape for key, entry in table.entries.items()}
    dtypes = {key: entry.dtype for key, entry in table.entries.items()}
    return AdapterSource(header, metadata, shapes, load, dtypes)


def _check(
    source: AdapterSource, legacy_axis: Axis | None
) -> tuple[Layout | None, AdapterConfig | None, list[str]]:
    """Check everything that can be known without reading a tensor."""
    layout, problems = resolve_layout(source.header, source.shapes, legacy_axis=legacy_axis)
    problems = [*source.problems, *problems]
    problems += [
        f"{key}: must be floating point ({', '.join(FLOATS)}), got {name}"
        for key, name in sorted(source.dtypes.items())
        if name not in FLOATS
    ]
    if layout is None:
        return None, None, problems
    try:
        header = dict(source.header)
        config = AdapterConfig.from_header(header, adapter_type=layout.type, r=layout.r)
    except AdapterError as error:
        return layout, None, [*problems, str(error)]
    return layout, config, problems


def _notes(source: AdapterSource, layout: Layout) -> list[str]:
    notes = list(source.notes)
    told = source.header.get("adapter_type")
    if told is None or "rank" not in source.header:
        notes.append(
            f"does not say what it is; its tensors are those of {layout.type}, rank {layout.r}"
        )
    elif told != layout.type:
        notes.append(f"calls its type {told!r}; its tensors are those of {layout.type}")
    return notes


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
    if adapter.config.type == LOKR:
        raise AdapterError(single_file_refusal(file))
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
    write_file(file, tensors, metadata)


def flat_tensors(adapter: AdapterFile) -> dict[str, Tensor]:
    """Give the tensors by their keys in a file."""
    return dict(_flatten(adapter.tensors))


def _flatten(tensors: Mapping[str, SiteTensors]) -> Iterator[tuple[str, Tensor]]:
    for site in sorted(tensors):
        for name in sorted(tensors[site]):
            yield key_of(site, name), tensors[site][name]


def _place(stored: Mapping[str, Tensor], layout: Layout) -> dict[str, SiteTensors]:
    placed: dict[str, SiteTensors] = {}
    for key, (site, name) in layout.places.items():
        tensor = stored[key].to(torch.float32)
        if name.startswith("magnitude"):
            tensor = tensor.reshape(-1)
        placed.setdefault(site, {})[name] = tensor.contiguous()
    order = (*TENSORS[layout.type], *BASES)
    return {
        site: {name: placed[site][name] for name in order if name in placed[site]}
        for site in sorted(placed)
    }


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
