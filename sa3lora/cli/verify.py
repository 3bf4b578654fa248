"""The verb `verify`: are the files still what they were when they were written?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sa3lora.cli.options import JsonOption
from sa3lora.cli.output import print_json
from sa3lora.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("verify", no_args_is_help=True)(verify)


def verify(
    path: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="What `sa3lora card` wrote, or a run.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Recompute the hashes of FOLDER and check its adapters; status 1 if anything differs.

    A folder of `sa3lora card` is checked against its SHA256SUMS, a run against its manifest.

    Examples:
      sa3lora verify vinyl-card
      sa3lora verify runs/vinyl
    """
    from sa3lora.adapters.share import SUMS_NAME, verify_folder

    if not path.is_dir():
        raise UsageError(f"{path} is no folder. Name what `sa3lora card` wrote, or a run.")
    if (path / SUMS_NAME).is_file():
        problems = verify_folder(path) + _adapter_problems(path)
    elif (path / "manifest.json").is_file():
        problems = _run_problems(path)
    else:
        raise UsageError(f"{path} has neither {SUMS_NAME} nor manifest.json: nothing to verify.")
    if as_json:
        print_json({"path": str(path), "problems": problems})
    elif problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        typer.echo("\n  ".join([f"{path} has {count}", *problems]))
    else:
        typer.echo(f"{path}: every file is as it was written")
    if problems:
        raise typer.Exit(1)


def _run_problems(run: Path) -> list[str]:
    from sa3lora.runs import RunFolder, sha256_file

    folder = RunFolder(run)
    told = folder.manifest().get("adapter")
    digest = told.get("sha256") if isinstance(told, dict) else None
    if not isinstance(told, dict) or digest is None:
        return [f"{folder.manifest_path.name}: the run has not finished, so it names no adapter"]
    name = str(told.get("file", folder.adapter_path.name))
    file = run / name
    if not file.is_file():
        return [f"{name}: missing"]
    found = sha256_file(file)
    if found != digest:
        return [f"{name}: changed, {found[:12]}… instead of {str(digest)[:12]}…"]
    return _adapter_problems(run)


def _adapter_problems(folder: Path) -> list[str]:
    from sa3lora.adapters.files import validate_adapter

    return [
        f"{file.name}: {problem}"
        for file in sorted(folder.glob("*.safetensors"))
        for problem in validate_adapter(file, check_values=True)
    ]
