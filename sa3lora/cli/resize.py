"""The verb `resize`: an adapter at another rank, or within a size."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sa3lora.cli.adapter_paths import adapter_file
from sa3lora.cli.base_models import check_fit, find_base
from sa3lora.cli.convert import Stored
from sa3lora.cli.merge_jobs import lost_facts, print_lost
from sa3lora.cli.options import JsonOption, ModelOption
from sa3lora.cli.output import print_json, print_table, status
from sa3lora.errors import UsageError

if TYPE_CHECKING:
    from sa3lora.adapters.resize import Candidate
    from sa3lora.models.source import ModelSource

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


class By(StrEnum):
    """What is to stay."""

    energy = "energy"
    loss = "loss"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("resize", no_args_is_help=True)(resize)


def resize(
    path: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Adapter file or run.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="File to write.")],
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="R", min=1, help="Rank of the result.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="SIZE", help="Largest file, such as 10MB.")
    ] = None,
    by: Annotated[By, typer.Option("--by", help="Keep most energy, or lowest loss.")] = By.energy,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DATASET", help="Clips to measure loss on.")
    ] = None,
    tuples: Annotated[
        int, typer.Option("--tuples", metavar="N", min=1, help="Draws to measure loss on.")
    ] = 64,
    model: ModelOption = None,
    dtype: Annotated[
        Stored, typer.Option("--dtype", help="Stored numbers; float16 halves the file.")
    ] = Stored.float32,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write ADAPTER at rank R, or the best of it that fits SIZE, and tell what each layer loses.

    Singular directions of each layer's change stay in order of their energy; magnitudes stay whole.
    Within SIZE weak layers may be left out. --by loss measures candidates (rank R, R/2, R/4 …, or
    each rank that fits SIZE) on held-out clips of --data and takes the lowest loss.

    Examples:
      sa3lora resize runs/vinyl --rank 4 -o vinyl-r4.safetensors
      sa3lora resize runs/vinyl --size 5MB --dtype float16 -o vinyl-small.safetensors
      sa3lora resize runs/vinyl --rank 16 --by loss --data latents/vinyl -o vinyl-best.safetensors
    """
    import torch

    from sa3lora.adapters.bases import check_bases
    from sa3lora.adapters.files import read_adapter, write_adapter
    from sa3lora.adapters.resize import Resizer
    from sa3lora.adapters.weights import CheckpointWeights

    if (rank is None) == (size is None):
        raise UsageError("pass either --rank R or --size SIZE")
    if (by is By.loss) != (data is not None):
        raise UsageError("--by loss and --data DATASET belong together: pass both, or none")
    if out.exists() and not force:
        raise UsageError(f"{out} exists already. Pass --force to replace it, or another name.")
    limit = None if size is None else _bytes(size)
    adapter = read_adapter(adapter_file(path))
    source = None
    if by is By.loss or model is not None or adapter.config.type.endswith("-xs"):
        source = find_base(model, adapter, label=str(path))
        check_fit(adapter, source, label=str(path), allow_other=False)
    weights = None if source is None else CheckpointWeights(source.weights_path)
    if weights is not None:
        check_bases(adapter, weights, label=str(path))
    stored = torch.float16 if dtype is Stored.float16 else torch.float32
    resizer = Resizer(adapter, weights, dtype=stored)
    if limit is not None:
        candidates = resizer.to_size(limit)
    elif by is By.loss:
        candidates = resizer.to_ranks(min(rank or 1, resizer.max_rank))
    else:
        candidates = [resizer.to_rank(rank or 1)]
    losses: list[float] = []
    if source is not None and data is not None:
        losses = _losses(source, candidates, data=data, tuples=tuples)
    chosen = losses.index(min(losses)) if losses else 0
    write_adapter(out, candidates[chosen].adapter, dtype=stored, overwrite=force)
    _report(candidates, losses, chosen=chosen, out=out, as_json=as_json)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?B?)", text.strip().upper())
    if match is None or match[2] not in _UNITS or float(match[1]) * _UNITS[match[2]] < 1:
        raise UsageError(f"--size must be a number of bytes such as 10MB or 500KB, got {text}")
    return int(float(match[1]) * _UNITS[match[2]])


def _losses(
    source: ModelSource, candidates: list[Candidate], *, data: Path, tuples: int
) -> list[float]:
    """Measure the mean loss with each candidate folded in, on the same draws."""
    from functools import cache

    from torch import Tensor

    from sa3lora.adapters.fold import AdapterStack
    from sa3lora.latents.format import LatentsDataset, check_model
    from sa3lora.probe import ProbeSet
    from sa3lora.recipe import ObjectiveSection

    dataset = LatentsDataset.open(data, split="validation")
    check_model(dataset.meta, source)
    probe = ProbeSet.build(
        dataset, tuples, seed=0, objective=ObjectiveSection(), model_config=source.config
    )
    encoder, denoiser = source.load_text_encoder(), source.load_denoiser()

    @cache
    def text(caption: str) -> Tensor:
        return encoder.encode([caption])[0]

    stack, losses = AdapterStack(denoiser), []
    for candidate in candidates:
        stack.add(candidate.adapter, "candidate")
        losses.append(float(probe.losses(denoiser, text).mean()))
        stack.remove("candidate")
        status(f"rank {candidate.rank}, {candidate.num_bytes} bytes: loss {losses[-1]:.5f}")
    return losses


def _report(
    candidates: list[Candidate], losses: list[float], *, chosen: int, out: Path, as_json: bool
) -> None:
    best = candidates[chosen]
    table = [
        {
            "rank": candidate.rank,
            "layers": len(candidate.adapter.sites),
            "bytes": candidate.num_bytes,
            "kept_energy": candidate.kept,
            "loss": losses[number] if losses else None,
        }
        for number, candidate in enumerate(candidates)
    ]
    if as_json:
        facts = {"out": str(out), "type": best.adapter.config.type, **table[chosen]}
        print_json({**facts, "candidates": table, **lost_facts(dict(best.lost))})
        return
    if len(candidates) > 1:
        rows = [
            [
                row["rank"],
                row["layers"],
                row["bytes"],
                f"{row['kept_energy']:.2%}",
                row["loss"] or "-",
            ]
            for row in table
        ]
        print_table(rows, header=("rank", "layers", "bytes", "kept energy", "loss"))
    print_lost(dict(best.lost))
    status(
        f"{best.adapter.config.type} of rank {best.rank}, {len(best.adapter.sites)} layers, "
        f"{best.num_bytes} bytes, {best.kept:.2%} of the energy kept"
    )
    typer.echo(out)
