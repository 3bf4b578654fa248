"""The verb `demo`: the whole line on music that is made on the spot."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sa3lora.cli.options import QuietOption
from sa3lora.errors import UsageError

if TYPE_CHECKING:
    from sa3lora.cli.demo_job import DemoResult


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("demo")(demo)


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for everything; new or empty.")
    ] = Path("demo"),
    style: Annotated[
        str, typer.Option("--style", metavar="STYLE", help="A style that tiny has never heard.")
    ] = "echo dub",
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=1, help="Training steps.")
    ] = 240,
    quiet: QuietOption = False,
) -> None:
    """Teach the embedded model a style it has never heard, and measure what it learned.

    Writes a few tracks, then runs what prep, train, evaluate, generate and merge do, offline and
    on any computer. It ends with what was measured and where the audio lies. If it fails or is
    stopped, DIR is as it was before.

    Examples:
      sa3lora demo
      sa3lora demo --out /tmp/demo --style "chip arcade"
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already. Name another folder with --out, or remove it.")
    from sa3lora.cli.demo_job import run_demo

    was_there = out.exists()
    try:
        result = run_demo(out, style=style, steps=steps, quiet=quiet)
    except BaseException:  # Ctrl-C too: the next try wants the folder new or empty
        shutil.rmtree(out, ignore_errors=True)
        if was_there:
            out.mkdir(exist_ok=True)
        raise
    _show(result)


def _show(result: DemoResult) -> None:
    from sa3lora.cli.output import print_table
    from sa3lora.cli.score_rows import HEADER

    typer.echo("")
    print_table(result.scores, header=HEADER, title="Same prompts and seeds")
    for line in result.verdicts:
        typer.echo(line)
    typer.echo(f"merged model and adapter: {result.merge_note}")
    print_table(result.timings, header=["stage", "seconds"])
    typer.echo(f"listen       {result.audio} (base, half and full strength, merged)")
    typer.echo(f"report       {result.report}")
    typer.echo(f"adapter      {result.adapter}")
    typer.echo(f"tensorboard  tensorboard --logdir {result.run}")
