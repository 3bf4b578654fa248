"""Write a full checkpoint folder with adapters merged into its weights.

The result loads like an official one: same tensor names, shapes and order, same
`model_config.json`, same text encoder. Weights pass one at a time, so memory stays small.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from sa3lora.adapters.container import (
    DTYPES,
    Header,
    copy_tensor,
    encode_named_header,
    load_tensor,
    read_header,
    tensor_view,
)
from sa3lora.adapters.effective import Term, effective_weight, round_to, terms_of
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.methods import Method, merged_change
from sa3lora.adapters.weights import checkpoint_key
from sa3lora.errors import AdapterError, AdapterMismatchError, ModelError

WEIGHTS = "model.safetensors"
CONFIG = "model_config.json"
CARD = "README.md"
_LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")


@dataclass(frozen=True)
class MergeReport:
    """What a merge changed: the count of weights, and the worst of them.

    `rounding` is the largest share, over all changed weights, of a change that the stored type
    rounded away, |rounded - exact| / |change|; 0 when nothing changed.
    """

    num_changed: int
    rounding: float
    worst_site: str | None


def merge_into_checkpoint(
    adapters: Sequence[tuple[AdapterFile, float]],
    base: Path,
    *,
    out: Path,
    card: str,
    dtype: torch.dtype | None = None,
    method: Method | None = None,
    overwrite: bool = False,
) -> MergeReport:
    """Write `out`, the model folder `base` with all adapters merged in at their strengths.

    Every weight is `base + sum(strength * delta)`, in float32, rounded once to the type it has in
    the base file. Released files are float32, so there it is exactly what a float32 pipeline with
    these adapters computes with. In a float16 file a small change loses some of itself: see
    `MergeReport.rounding`, or pass `dtype=torch.float32` for the changed weights.

    Args:
        adapters: Adapters of any type with their strengths.
        base: Folder with `model_config.json` and `model.safetensors`.
        out: Folder to write; it appears complete or not at all.
        card: Text of its README.md.
        dtype: Type of changed weights; None keeps that of the base file.
        method: How the changes are put together; None sums them up, as a stack does.
        overwrite: Replace an existing `out`.

    Raises:
        AdapterError: If `out` exists and `overwrite` is off, or weights overflow.
        AdapterMismatchError: If the checkpoint lacks a site of an adapter.
        ModelError: If `base` is no model folder.
    """
    check_output(out, overwrite=overwrite)
    for name in (CONFIG, WEIGHTS):
        if not (base / name).is_file():
            raise ModelError(f"{base} is no model folder: it has no {name}")
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        report = _write_weights(
            adapters,
            base / WEIGHTS,
            out=temporary / WEIGHTS,
            dtype=dtype,
            method=method or Method(),
        )
        _copy_rest(base, temporary)
        (temporary / CARD).write_text(card, encoding="utf-8")
        _replace_folder(temporary, out)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse to replace anything but an earlier model folder.

    Raises:
        AdapterError: If `out` exists and `overwrite` is off, or it is not empty and no model.
    """
    if not out.exists():
        return
    if not overwrite:
        raise AdapterError(f"{out} exists already. Pass --force to replace it, or another name.")
    if not out.is_dir() or (any(out.iterdir()) and not (out / CONFIG).is_file()):
        raise AdapterError(
            f"{out} is no model folder and would be lost. Give another name, or remove it first."
        )


def _write_weights(
    adapters: Sequence[tuple[AdapterFile, float]],
    source: Path,
    *,
    out: Path,
    dtype: torch.dtype | None,
    method: Method,
) -> MergeReport:
    header = read_header(source)
    sites = {checkpoint_key(site): site for adapter, _ in adapters for site in adapter.tensors}
    missing = sorted(site for key, site in sites.items() if key not in header.entries)
    if missing:
        raise AdapterMismatchError("\n  ".join([f"{source} has no such layers", *missing[:8]]))
    terms = {key: found for key, site in sites.items() if (found := terms_of(site, adapters))}
    stored = {key: dtype or _dtype(header, key) for key in terms}
    order = sorted(header.entries, key=lambda key: header.entries[key].start)
    worst, worst_site = 0.0, None
    with open(source, "rb") as reader, open(out, "xb") as writer:
        writer.write(_header(header, order, stored=stored))
        for key in order:
            if key not in terms:
                copy_tensor(reader, header, key, writer=writer)
                continue
            weight = load_tensor(reader, header, key)
            merged, loss = _merge_weight(weight, terms[key], dtype=stored[key], method=method)
            pair = (worst, worst_site), (loss, sites[key])
            worst, worst_site = max(pair, key=lambda found: found[0])
            writer.write(tensor_view(merged))
        _sync(writer)
    return MergeReport(len(terms), worst, worst_site)


def _header(header: Header, order: list[str], *, stored: Mapping[str, torch.dtype]) -> bytes:
    """Give the header of the base with other types where weights change."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    typed, sizes = {}, {}
    for key in order:
        entry = header.entries[key]
        changed = stored.get(key)
        typed[key] = (names[changed] if changed else entry.dtype, entry.shape)
        size = entry.end - entry.start
        sizes[key] = changed.itemsize * math.prod(entry.shape) if changed else size
    return encode_named_header(typed, sizes, header.metadata)


@torch.no_grad()
def _merge_weight(
    weight: Tensor, terms: Sequence[Term], *, dtype: torch.dtype, method: Method
) -> tuple[Tensor, float]:
    if method.name == "sum":
        exact = effective_weight(weight, terms)
    else:
        exact = weight.float() + merged_change(weight, terms, method)
    rounded = round_to(exact, dtype=dtype, site=terms[0].site)
    change = torch.linalg.vector_norm(exact - weight.float())
    lost = torch.linalg.vector_norm(rounded.float() - exact)
    return rounded, float(lost / change) if change > 0 else 0.0


def _dtype(header: Header, key: str) -> torch.dtype:
    name = header.entries[key].dtype
    if name not in DTYPES:
        raise ModelError(f"{key} is stored as {name}, which cannot be merged into")
    return DTYPES[name]


def _copy_rest(base: Path, out: Path) -> None:
    shutil.copyfile(base / CONFIG, out / CONFIG)
    for pattern in _LICENCE_FILES:
        for file in base.glob(pattern):
            shutil.copyfile(file, out / file.name)
    for folder in sorted(text_encoder_folders(base)):
        shutil.copytree(folder, out / folder.relative_to(base))


def text_encoder_folders(base: Path) -> list[Path]:
    """List the sub-folders of a model that hold a text encoder: weights, config and tokenizer."""
    named = _paths_in_config(json.loads((base / CONFIG).read_text(encoding="utf-8")))
    found = [base / name for name in named if (base / name / "config.json").is_file()]
    found += [
        config.parent
        for config in sorted(base.glob("*/config.json"))
        if any((config.parent / name).is_file() for name in _TOKENIZER_FILES)
    ]
    return list(dict.fromkeys(found))


def _paths_in_config(raw: Mapping[str, object]) -> list[str]:
    model = raw.get("model")
    conditioning = model.get("conditioning") if isinstance(model, dict) else None
    entries = conditioning.get("configs") if isinstance(conditioning, dict) else None
    configs = [entry.get("config") or {} for entry in entries or () if isinstance(entry, dict)]
    paths = [config.get(key) for config in configs for key in ("model_path", "subfolder")]
    return [path for path in paths if isinstance(path, str) and not os.path.isabs(path)]


def _replace_folder(temporary: Path, out: Path) -> None:
    if not out.exists():
        os.replace(temporary, out)
        return
    aside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
    os.replace(out, aside)
    try:
        os.replace(temporary, out)
    except OSError:
        os.replace(aside, out)
        raise
    if aside.is_dir():
        shutil.rmtree(aside)
    else:
        aside.unlink()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
