"""The verb `runs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sa3lora.cli.options import JsonOption
from sa3lora.cli.output import print_json, print_table
from sa3lora.errors import UsageError

if TYPE_CHECKING:
    from sa3lora.runs import RunSummary

_RUNS = Path("runs")
_HEADER = (
    "run", "status", "step", "model", "adapter", "data", "loss against base", "scores", "date",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("runs")(runs)


def runs(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DIR | diff A B]", help="Folder of runs (runs/), or two of them."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs in DIR, or show what differs between the runs A and B.

    The loss is that of the newest validation less the base model's, with its 95 % interval; scores
    are those of `sa3lora evaluate`, adapter less base. A and B are names below runs/ or folders;
    only what differs in recipe, data and scores is shown.

    Examples:
      sa3lora runs
      sa3lora runs diff vinyl vinyl-r8
    """
    given = words or []
    if given[:1] == ["diff"]:
        if len(given) != 3:
            raise UsageError(f"diff compares two runs, got {len(given) - 1}: runs diff A B.")
        _diff(given[1], given[2], as_json=as_json)
    elif len(given) > 1:
        raise UsageError(f"one folder of runs, got {', '.join(given)}. To compare: runs diff A B.")
    else:
        _list(Path(given[0]) if given else _RUNS, as_json=as_json)


def _list(root: Path, *, as_json: bool) -> None:
    from sa3lora.runs import list_runs

    found = list_runs(root)
    if as_json:
        print_json([run.to_json() for run in found])
    elif found:
        print_table([_row(run) for run in found], header=_HEADER)
        for run in found:
            if run.problem:
                typer.echo(f"{run.name}: {run.problem}")
    else:
        typer.echo(f"no runs in {root}")


def _row(run: RunSummary) -> list[str]:
    loss = "" if run.validation is None else str(run.validation)
    return [
        run.name,
        run.status,
        f"{run.step} of {run.max_steps}",
        run.model or "",
        run.adapter or "",
        run.data or "",
        f"{loss} on training clips" if loss and run.clips == "train" else loss,
        ", ".join(f"{key} {gap.value:+.3g}" for key, gap in run.scores.items()),
        run.date or "",
    ]


def _diff(first: str, second: str, *, as_json: bool) -> None:
    from dataclasses import asdict

    from sa3lora.runs import RunFolder, compare_runs, read_run

    one, two = (read_run(RunFolder.open(name, root=_RUNS)) for name in (first, second))
    found = compare_runs(one, two)
    if as_json:
        print_json([asdict(each) for each in found])
    elif found:
        rows = [[each.part, each.name, _shown(each.first), _shown(each.second)] for each in found]
        print_table(rows, header=("", "", one.name, two.name))
    else:
        typer.echo(f"{one.name} and {two.name} do not differ in recipe, data or scores")


def _shown(value: object) -> str:
    if value is None:
        return ""
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and text.isalnum() else text
