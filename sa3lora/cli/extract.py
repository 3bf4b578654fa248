"""The verb `extract`: an adapter out of two full checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sa3lora.cli.base_models import site_shapes_of
from sa3lora.cli.convert import Stored
from sa3lora.cli.merge_jobs import lost_facts, print_lost, total_share
from sa3lora.cli.options import JsonOption, QuietOption
from sa3lora.cli.output import print_json, progress, status
from sa3lora.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("extract", no_args_is_help=True)(extract)


def extract(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Name, folder or Hub id.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The same model, trained on.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="File to write.")],
    rank: Annotated[int, typer.Option("--rank", metavar="R", min=1, help="Rank.")] = 16,
    dtype: Annotated[
        Stored, typer.Option("--dtype", help="Stored numbers; float16 halves the file.")
    ] = Stored.float32,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the nearest adapter of rank R for what TUNED changes of BASE, and tell its error.

    Tensors that differ but that no adapter can hold (biases, norms, tokens) are named.

    Examples:
      sa3lora extract small-music-base models/tuned --rank 32 -o tuned-r32.safetensors
    """
    import torch

    from sa3lora.adapters.extract import extract_adapter
    from sa3lora.adapters.files import write_adapter
    from sa3lora.adapters.weights import CheckpointWeights
    from sa3lora.models.source import resolve_model

    if out.exists() and not force:
        raise UsageError(f"{out} exists already. Pass --force to replace it, or another name.")
    before, after = resolve_model(base), resolve_model(tuned)
    with progress("layers", quiet=quiet) as advance:
        found = extract_adapter(
            CheckpointWeights(before.weights_path),
            CheckpointWeights(after.weights_path),
            rank,
            sites=sorted(site_shapes_of(before)),
            base_id=before.name,
            dit_hash=before.dit_hash,
            title=after.name,
            progress=lambda done, total: advance(done, total=total),
        )
    stored = torch.float16 if dtype is Stored.float16 else torch.float32
    write_adapter(out, found.adapter, dtype=stored, overwrite=force)
    if found.beyond:
        status(
            f"warning: {len(found.beyond)} tensors differ too that no adapter can hold: "
            f"{', '.join(found.beyond[:8])}"
        )
    status(
        f"{len(found.adapter.sites)} layers at rank {rank}, "
        f"{total_share(found.lost):.2%} of the change's energy lost"
    )
    if as_json:
        facts = {"out": str(out), "rank": rank, "num_sites": len(found.adapter.sites)}
        print_json({**facts, "beyond": found.beyond, **lost_facts(found.lost)})
        return
    print_lost(found.lost)
    typer.echo(out)
