"""The verb `merge`: adapters into one adapter, or into a full checkpoint."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sa3lora.cli.adapter_paths import parse_weighted_path
from sa3lora.cli.options import JsonOption, ModelOption
from sa3lora.cli.output import print_json, status
from sa3lora.errors import UsageError

if TYPE_CHECKING:
    from sa3lora.adapters.files import AdapterFile
    from sa3lora.models.source import ModelSource

Loaded = list[tuple[str, "AdapterFile", float]]


class StoredType(StrEnum):
    """Type of the changed weights in a merged checkpoint."""

    keep = "keep"
    float32 = "float32"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("merge", no_args_is_help=True)(merge)


def merge(
    adapters: Annotated[
        list[str], typer.Argument(metavar="PATH[=STRENGTH]...", help="Adapters; strength 1.0.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="File, or folder with --into-base.")
    ],
    into_base: Annotated[
        bool, typer.Option("--into-base", help="Write a full checkpoint folder.")
    ] = False,
    model: ModelOption = None,
    stored: Annotated[
        StoredType, typer.Option("--store", help="Type of changed weights with --into-base.")
    ] = StoredType.keep,
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="Accept adapters of another base.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Merge adapters, each at its strength, into one adapter or into a full checkpoint.

    One adapter from several is exact, at the sum of their ranks, for plain lora. --into-base takes
    any type and writes a folder that loads like an official one; its model is --model, or what
    the first adapter was trained on. Strengths may be negative.

    Examples:
      sa3lora merge runs/vinyl=0.7 runs/tape=0.3 -o both.safetensors
      sa3lora merge runs/vinyl/adapter.safetensors -o models/vinyl --into-base --model small-music
    """
    from sa3lora.adapters.files import read_adapter

    pairs = [parse_weighted_path(text) for text in adapters]
    _refuse_existing(out, force=force)
    if not into_base and (model or stored is not StoredType.keep):
        raise UsageError("--model and --store belong to --into-base: leave them out, or add it")
    loaded: Loaded = [(str(path), read_adapter(path), strength) for path, strength in pairs]
    if into_base:
        result = _into_base(
            loaded,
            out=out,
            source=_find_model(model, loaded),
            stored=stored,
            allow_other=allow_other_base,
            force=force,
        )
    else:
        result = _into_one(loaded, out=out, allow_other=allow_other_base, force=force)
    if as_json:
        print_json(result)
    else:
        typer.echo(out)


def _into_one(loaded: Loaded, *, out: Path, allow_other: bool, force: bool) -> dict[str, object]:
    from sa3lora.adapters.compat import check_one_base
    from sa3lora.adapters.files import write_adapter
    from sa3lora.adapters.merge import merge_adapters

    check_one_base([(label, adapter) for label, adapter, _ in loaded], allow_other=allow_other)
    merged = merge_adapters([(adapter, strength) for _, adapter, strength in loaded])
    write_adapter(out, merged, overwrite=force)
    status(f"{_names(loaded)}: one lora of rank {merged.config.r}, {len(merged.sites)} layers")
    return {
        "out": str(out),
        "rank": merged.config.r,
        "num_sites": len(merged.sites),
        "content_hash": merged.content_hash,
    }


def _into_base(
    loaded: Loaded,
    *,
    out: Path,
    source: ModelSource,
    stored: StoredType,
    allow_other: bool,
    force: bool,
) -> dict[str, object]:
    import torch

    from sa3lora.adapters.card import merged_card
    from sa3lora.adapters.checkpoint import merge_into_checkpoint
    from sa3lora.adapters.compat import check_base
    from sa3lora.adapters.sites import site_shapes
    from sa3lora.models.denoiser import Denoiser

    with torch.device("meta"):
        shapes = site_shapes(Denoiser(source.config))
    for label, adapter, _ in loaded:
        check_base(
            adapter,
            name=source.name,
            dit_hash=source.dit_hash,
            shapes=shapes,
            label=label,
            allow_other=allow_other,
        )
    report = merge_into_checkpoint(
        [(adapter, strength) for _, adapter, strength in loaded],
        source.folder,
        out=out,
        card=merged_card(loaded, name=out.name, base=source.name, dit_hash=source.dit_hash),
        dtype=torch.float32 if stored is StoredType.float32 else None,
        overwrite=force,
    )
    status(f"{_names(loaded)}: {report.num_changed} weights of {source.name} changed")
    if report.rounding > 0.0:
        status(
            f"the stored type rounds away up to {report.rounding:.2%} of a change "
            f"({report.worst_site}); --store float32 keeps all of it"
        )
    return {
        "out": str(out),
        "base": source.name,
        "base_dit_hash": source.dit_hash,
        "num_changed": report.num_changed,
        "rounding": report.rounding,
    }


def _find_model(model: str | None, loaded: Loaded) -> ModelSource:
    from sa3lora.adapters.compat import base_name
    from sa3lora.models.source import resolve_model

    if model is not None:
        return resolve_model(model)
    named = base_name(loaded[0][1])
    if named is None:
        raise UsageError(f"{loaded[0][0]} does not tell its base model: pass --model")
    status(f"model: {named}, which {loaded[0][0]} was trained on")
    return resolve_model(named)


def _names(loaded: Loaded) -> str:
    return ", ".join(f"{label} at {strength:g}" for label, _, strength in loaded)


def _refuse_existing(out: Path, *, force: bool) -> None:
    if out.exists() and not force:
        raise UsageError(f"{out} exists already. Pass --force to replace it, or another name.")
