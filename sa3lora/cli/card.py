"""The verb `card`: a folder of an adapter that can be handed on, or put on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sa3lora.cli.adapter_paths import adapter_file
from sa3lora.cli.options import JsonOption
from sa3lora.cli.output import print_json, status
from sa3lora.errors import UsageError

if TYPE_CHECKING:
    from sa3lora.adapters.files import AdapterFile


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("card", no_args_is_help=True)(card)


def card(
    path: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Adapter file or run.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="OUT", help="Folder; default: NAME-card."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Title; default: the adapter's.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DATASET", help="Dataset, for licences and attributions."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="REPO", help="Upload to this Hub repository, OWNER/NAME."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: make a private repository.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a folder to share ADAPTER: the file, README.md for the Hub, samples, checksums.

    The page tells base model, trigger words, training data with counts and licences, recipe,
    scores with their conditions, and the strengths that were measured to help. A run brings its
    previews and evaluations along. What is not known is said to be so.

    Examples:
      sa3lora card runs/vinyl --data latents/vinyl
      sa3lora card runs/vinyl -o share/vinyl --push me/vinyl
    """
    from sa3lora.adapters.files import read_adapter
    from sa3lora.adapters.share import push_folder, upload_arguments, write_share_folder

    file = adapter_file(path)
    if file.suffix != ".safetensors":
        raise UsageError(f"{path} is shared as one file: sa3lora convert {path} --to sa3 -o NAME")
    if private and push is None:
        raise UsageError("--private belongs to --push: leave it out, or add it")
    adapter = read_adapter(file)
    title = name or adapter.metadata.get("modelspec.title") or _plain_name(file)
    folder = out or Path(f"{title}-card")
    if push is not None:
        upload_arguments(folder, push)  # a wrong name is told before anything is written
    readme, files = _collect(file, adapter, title=title, data=data)
    names = write_share_folder(folder, readme=readme, files=files, overwrite=force)
    status(f"{len(names)} files: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}")
    address = None if push is None else push_folder(folder, push, private=private)
    if as_json:
        print_json({"out": str(folder), "files": names, "pushed": address})
    else:
        typer.echo(address or folder)


def _plain_name(file: Path) -> str:
    return file.resolve().parent.name if file.stem == "adapter" else file.stem


def _collect(
    file: Path, adapter: AdapterFile, *, title: str, data: Path | None
) -> tuple[str, dict[str, Path]]:
    """Gather what the page tells, and the files that go with it."""
    from sa3lora.adapters.compat import base_name
    from sa3lora.adapters.hub_card import Card
    from sa3lora.cli import card_facts
    from sa3lora.models.registry import MODELS
    from sa3lora.runs import sha256_file

    base = base_name(adapter) or "not told"
    known = base if base.count("/") == 1 else None
    repo = MODELS[base].repo_id if base in MODELS else known
    run = file.parent if (file.parent / "manifest.json").is_file() else None
    results = card_facts.evaluations(run, adapter.content_hash)
    samples = card_facts.samples(run, results)
    page = Card(
        name=title,
        file=file.name,
        adapter=adapter,
        sha256=sha256_file(file),
        base=base,
        base_repo=repo,
        data=card_facts.statement(run, data),
        scores=card_facts.score_rows(results),
        strengths=card_facts.strength_range(results),
        samples=list(samples),
        choice=card_facts.choice(run),
    )
    return page.text(), {file.name: file, **samples}
