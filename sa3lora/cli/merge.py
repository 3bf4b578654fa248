"""The verb `merge`: adapters into one adapter, or into a full checkpoint."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sa3lora.cli.adapter_paths import parse_weighted_path
from sa3lora.cli.merge_jobs import Job, into_base, into_one, to_rank
from sa3lora.cli.options import JsonOption, ModelOption
from sa3lora.cli.output import print_json
from sa3lora.errors import UsageError


class StoredType(StrEnum):
    """Type of the changed weights in a merged checkpoint."""

    keep = "keep"
    float32 = "float32"


class MethodName(StrEnum):
    """Ways to put changes together."""

    sum = "sum"
    ties = "ties"
    dare = "dare"


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
    into_base_: Annotated[
        bool, typer.Option("--into-base", help="Write a full checkpoint folder.")
    ] = False,
    model: ModelOption = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", metavar="R", min=1, help="Nearest lora of rank R, for any types."),
    ] = None,
    method: Annotated[
        MethodName, typer.Option("--method", help="ties and dare need --rank or --into-base.")
    ] = MethodName.sum,
    density: Annotated[
        float, typer.Option("--density", metavar="D", help="Share kept by ties and dare.")
    ] = 0.5,
    seed: Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Of dare.")] = 0,
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

    One adapter from several is exact, at the sum of their ranks, for any mixture of lora, lora-xs
    and dora-rows(-xs), and for one of lora, lora-xs and dora-cols(-xs). --rank R takes any types
    and prints what each layer loses. --into-base takes any type, is exact, and writes a folder that
    loads like an official one. The model is --model, or what the first adapter was trained on.
    Strengths may be negative.

    Examples:
      sa3lora merge runs/vinyl=0.7 runs/tape=0.3 -o both.safetensors
      sa3lora merge runs/vinyl runs/tape --method ties --rank 16 -o both.safetensors
      sa3lora merge runs/vinyl/adapter.safetensors -o models/vinyl --into-base --model small-music
    """
    from sa3lora.adapters.files import read_adapter
    from sa3lora.adapters.methods import Method

    pairs = [parse_weighted_path(text) for text in adapters]
    _refuse(out, force=force, into_base=into_base_, rank=rank, method=method, density=density)
    if stored is not StoredType.keep and not into_base_:
        raise UsageError("--store belongs to --into-base: leave it out, or add it")
    job = Job(
        loaded=[(str(path), read_adapter(path), strength) for path, strength in pairs],
        out=out,
        model=model,
        method=Method(method.value, density, seed),
        allow_other=allow_other_base,
        force=force,
    )
    if into_base_:
        result = into_base(job, whole=stored is StoredType.float32)
    elif rank is not None:
        result = to_rank(job, rank, quiet=as_json)
    else:
        result = into_one(job)
    if as_json:
        print_json(result)
    else:
        typer.echo(out)


def _refuse(
    out: Path,
    *,
    force: bool,
    into_base: bool,
    rank: int | None,
    method: MethodName,
    density: float,
) -> None:
    if out.exists() and not force:
        raise UsageError(f"{out} exists already. Pass --force to replace it, or another name.")
    if into_base and rank is not None:
        raise UsageError("--rank and --into-base exclude each other: pass one of them")
    if method is not MethodName.sum and not into_base and rank is None:
        raise UsageError(
            f"--method {method.value} makes full changes: pass --rank R or --into-base"
        )
    if not 0.0 < density <= 1.0:
        raise UsageError(f"--density must be above 0 and at most 1, got {density}")
