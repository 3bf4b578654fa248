"""Bring an adapter into another format, and prove that it still does the same."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sa3lora.adapters.bases import check_bases, pin_bases
from sa3lora.adapters.config import LOKR
from sa3lora.adapters.files import AdapterFile, write_adapter
from sa3lora.adapters.lokr_folder import single_file_refusal
from sa3lora.adapters.lowrank import fill_rank
from sa3lora.adapters.merge import Lost, merge_to_rank
from sa3lora.adapters.methods import Method
from sa3lora.adapters.peft_write import (
    PEFT_TYPES,
    check_peft_type,
    write_diffusers_folder,
    write_peft_folder,
)
from sa3lora.adapters.proof import Format, GroupError, LayerError, by_kind, compare, prove
from sa3lora.adapters.weights import CheckpointWeights, kernels_of
from sa3lora.errors import AdapterError

_SHOWN = 8


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        adapter: What was written.
        groups: Worst error of each kind of layer, source against result.
        approximation: Worst error of each kind that the lower rank costs; empty if exact.
        lost: Energy lost by layer; empty if exact.
        num_sites: Layers of the source, all of which are in the result.
        num_model_sites: Layers of the model that could be adapted.
    """

    adapter: AdapterFile
    groups: list[GroupError]
    approximation: list[GroupError]
    lost: dict[str, Lost]
    num_sites: int
    num_model_sites: int


def convert_adapter(
    adapter: AdapterFile,
    out: Path,
    *,
    to: Format,
    weights: CheckpointWeights,
    num_model_sites: int,
    dtype: torch.dtype = torch.float32,
    with_bases: bool = False,
    approximate: int | None = None,
    overwrite: bool = False,
    label: str = "the adapter",
) -> Conversion:
    """Write an adapter as `to` and compare source and result on the same random input.

    Args:
        adapter: The source.
        out: File for `sa3`, folder else; it appears only once it is proven.
        to: The format.
        weights: Of the base model.
        num_model_sites: How many layers of it can be adapted.
        dtype: Type of the stored tensors, float32 or float16.
        with_bases: Put the bases of an `-xs` type into the file.
        approximate: Rank of the `lora` that stands for a type the format lacks.
        overwrite: Replace an existing `out`.
        label: What to call the source in messages.

    Raises:
        AdapterError: If `out` is taken, the format lacks the type, or source and result differ.
        AdapterMismatchError: If the bases of an `-xs` type are others than those of `weights`.
    """
    check_target(out, to=to, overwrite=overwrite)
    check_bases(adapter, weights, label=label)
    source, lost = adapter, dict[str, Lost]()
    if approximate is not None and (to == "sa3" or adapter.config.type not in PEFT_TYPES):
        source, lost = _approximated(adapter, approximate, weights)
    if to == "sa3":
        if source.config.type == LOKR:
            raise AdapterError(single_file_refusal(out))
        source = pin_bases(one_rank(source), weights, carry=with_bases)
    else:
        check_peft_type(source)
    temporary = out.with_name(f".{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        written = temporary / out.name
        _write(source, written, to=to, weights=weights, dtype=dtype)
        errors = prove(source if lost else adapter, written, to=to, weights=weights)
        check_errors(errors, dtype=dtype)
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(written, out)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Conversion(
        adapter=source,
        groups=by_kind(errors),
        approximation=by_kind(compare(adapter, source, weights)) if lost else [],
        lost=lost,
        num_sites=len(adapter.sites),
        num_model_sites=num_model_sites,
    )


def check_target(out: Path, *, to: Format, overwrite: bool) -> None:
    """Refuse a name that is taken or does not fit the format.

    Raises:
        AdapterError: With what would be right.
    """
    if to == "sa3" and out.suffix != ".safetensors":
        raise AdapterError(f"{out}: an adapter file must be called NAME.safetensors.")
    if not out.exists():
        return
    if not overwrite:
        raise AdapterError(f"{out} exists already. Pass --force to replace it, or another name.")
    if (to == "sa3") == out.is_dir():
        raise AdapterError(f"{out} is something else and would be lost. Give another name.")
    parts = {"adapter_config.json", "adapter_model.safetensors", "transformer", "conditioner"}
    strange = [p.name for p in out.iterdir() if p.name not in parts] if out.is_dir() else []
    if strange:
        raise AdapterError(f"{out} holds {strange[0]}, which would be lost. Give another name.")


def check_errors(errors: Sequence[LayerError], *, dtype: torch.dtype) -> None:
    """Refuse a result that does not do what its source does.

    Raises:
        AdapterError: Naming the worst layers and their errors.
    """
    failed = [error for error in errors if not error.passes(dtype)]
    if failed:
        worst = sorted(failed, key=lambda error: -error.relative)[:_SHOWN]
        listed = [f"{error.site}: {error.relative:.2%} of the change" for error in worst]
        raise AdapterError(
            "\n  ".join([f"{len(failed)} layers do not do what the source does", *listed])
            + "\nNothing was written. With --dtype float32 nothing is rounded."
        )


def one_rank(adapter: AdapterFile) -> AdapterFile:
    """Give all layers one rank, with zeros, since the released tools know only one a file."""
    ranks = {adapter.rank(site) for site in adapter.sites}
    if len(ranks) == 1 or adapter.config.type.endswith("-xs"):
        return adapter
    r = max(ranks)
    tensors = {}
    for site, group in adapter.tensors.items():
        up = (group["lora_B"].double() * adapter.scale(site)).float()
        down, up = fill_rank(group["lora_A"], up, r)
        tensors[site] = {**group, "lora_A": down, "lora_B": up}
    config = dataclasses.replace(adapter.config, r=r, lora_alpha=float(r))
    return dataclasses.replace(adapter, config=config, tensors=tensors)


def _approximated(
    adapter: AdapterFile, rank: int, weights: CheckpointWeights
) -> tuple[AdapterFile, dict[str, Lost]]:
    nearest, lost = merge_to_rank([(adapter, 1.0)], rank, weights=weights, method=Method())
    config = dataclasses.replace(
        nearest.config, include=adapter.config.include, exclude=adapter.config.exclude
    )
    return AdapterFile(config, nearest.tensors, adapter.metadata), lost


def _write(
    adapter: AdapterFile,
    out: Path,
    *,
    to: Format,
    weights: CheckpointWeights,
    dtype: torch.dtype,
) -> None:
    if to == "sa3":
        write_adapter(out, adapter, dtype=dtype)
        return
    write = write_peft_folder if to == "peft" else write_diffusers_folder
    write(out, adapter, kernels=kernels_of(adapter.sites, weights), dtype=dtype)
