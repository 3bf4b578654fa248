"""The verbs `models list`, `models download` and `models random`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from sa3lora.cli.options import JsonOption, QuietOption
from sa3lora.cli.output import print_json, print_table, progress, status
from sa3lora.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the group of verbs."""
    group = typer.Typer(
        name="models",
        help="List the models that have a name, download one, or write one of random weights.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("list")(list_models)
    group.command("download", no_args_is_help=True)(download_model)
    group.command("random", no_args_is_help=True)(random_model)
    app.add_typer(group)


def list_models(as_json: JsonOption = False) -> None:
    """List the models that have a name, with what a download and inference ask for.

    Memory is for inference in half precision, float32 for tiny.

    Examples:
      sa3lora models list
      sa3lora models list --json
    """
    from sa3lora.models.hub import is_downloaded
    from sa3lora.models.registry import MODELS, TINY_FOLDER

    rows: list[dict[str, object]] = []
    for entry in MODELS.values():
        if entry.repo_id is None:
            there = "embedded" if (TINY_FOLDER / "model.safetensors").is_file() else "missing"
        else:
            there = "downloaded" if is_downloaded(entry.repo_id) else "on the Hub"
        rows.append(
            {
                "name": entry.name,
                "about": entry.about,
                "download_gb": entry.size_gb if entry.repo_id else 0.0,
                "memory_gb": float(entry.memory_gb),
                "repo_id": entry.repo_id,
                "where": there,
            }
        )
    if as_json:
        print_json(rows)
        return
    shown = ("name", "about", "download_gb", "memory_gb", "where")
    print_table(
        [[row[key] for key in shown] for row in rows],
        header=["name", "about", "download GB", "memory GB", "where"],
    )


def download_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of `sa3lora models list`.")],
) -> None:
    """Download a model and its text encoder from the Hugging Face Hub.

    The licence of each model has to be accepted once on its page, with a token from
    `hf auth login`. Size and free disk space are told before anything is fetched.

    Examples:
      sa3lora models download small-music-base
    """
    from sa3lora.models.hub import cache_folder, free_bytes, is_downloaded, page_of
    from sa3lora.models.registry import MODELS
    from sa3lora.models.source import resolve_model

    entry = MODELS.get(name)
    if entry is None:
        raise UsageError(f"there is no model {name!r}. Known names: {', '.join(MODELS)}.")
    if entry.repo_id is None:
        status(f"{name} comes with sa3lora, there is nothing to download")
        typer.echo(resolve_model(name).folder)
        return
    cache = cache_folder()
    free_gb = free_bytes(cache) / 1e9
    status(f"repository: {entry.repo_id}")
    status(f"licence:    {page_of(entry.repo_id)}  (accept it there once, then `hf auth login`)")
    status(f"download:   {entry.size_gb:g} GB, at 10 MB/s {_minutes(entry.size_gb)}")
    status(f"disk:       {free_gb:.1f} GB free at {cache}")
    if free_gb < entry.size_gb and not is_downloaded(entry.repo_id):
        raise UsageError(
            f"{name} needs {entry.size_gb:g} GB, {cache} has {free_gb:.1f} GB free. Free some "
            "space, or set HF_HOME to a folder on another disk."
        )
    source = resolve_model(name)
    if source.config.prompt is not None:
        source.text_folder()
    typer.echo(source.folder)


def random_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of `sa3lora models list`.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="New folder, or an empty one.")
    ],
    seed: Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Of the weights.")] = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a folder in a model's official layout with random weights.

    For trying a real size without a download: it loads like the released model and makes noise.
    The text encoder has its real size too, with the tokenizer of tiny.

    Examples:
      sa3lora models random small-music-base -o models/random-small
    """
    from sa3lora.models.random_model import write_random_model
    from sa3lora.models.registry import MODELS

    if name not in MODELS:
        raise UsageError(f"there is no model {name!r}. Known names: {', '.join(MODELS)}.")
    started = time.monotonic()
    with progress(f"random {name} (MB)", quiet=quiet) as advance:
        written = write_random_model(
            name,
            out,
            seed=seed,
            progress=lambda done, total: advance(done // 10**6, total=total // 10**6),
        )
    status(
        f"{written.num_tensors} tensors, {written.num_elements / 1e6:.1f} million numbers, "
        f"{written.num_bytes / 1e9:.2f} GB in {time.monotonic() - started:.0f} s"
    )
    if as_json:
        print_json(
            {
                "folder": str(written.folder),
                "name": name,
                "seed": seed,
                "num_tensors": written.num_tensors,
                "num_elements": written.num_elements,
            }
        )
    else:
        typer.echo(written.folder)


def _minutes(size_gb: float) -> str:
    minutes = size_gb * 1e9 / 10e6 / 60
    return f"about {max(round(minutes), 1)} min"
