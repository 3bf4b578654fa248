"""What verbs write: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol

import typer

if TYPE_CHECKING:
    from rich.console import Console


class Advance(Protocol):
    """Move a progress bar."""

    def __call__(self, done: float, /, *, total: float | None = None, note: str = "") -> None:
        """Show that `done` of `total` is behind us; `note` stands beside the bar."""
        ...


@cache
def _stderr() -> Console:
    # One console for bars and lines, so that a line goes above a running bar.
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def status(line: str) -> None:
    """Write one line to stderr, above a progress bar if one runs.

    Args:
        line: Plain text; brackets are not markup.
    """
    _stderr().print(line, markup=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Write a result as JSON to stdout.

    Args:
        value: Plain JSON values; a number that is not finite is an error of ours.
    """
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(
    rows: Sequence[Sequence[object]], *, header: Sequence[str], title: str | None = None
) -> None:
    """Write a result as a table to stdout.

    Floats show four significant digits and are set to the right, like other numbers.

    Args:
        rows: Cells, as many in each row as in `header`.
        header: Names of the columns.
        title: A line above.
    """
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        # A file or a pipe has no width: nothing may be cut or folded there.
        needed = Measurement.get(console, console.options.update(max_width=10**6), table)
        console = Console(highlight=False, width=max(80, needed.maximum))
    console.print(table)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def progress(label: str, *, total: float | None = None, quiet: bool = False) -> Iterator[Advance]:
    """Show a bar on stderr while the block runs.

    Args:
        label: What is going on.
        total: What counts as the whole; None shows that something moves, until `advance` tells.
        quiet: Show nothing.

    Yields:
        A function to call with how much is done.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=_stderr(),
        disable=quiet,
        transient=False,
    )
    task = bar.add_task(label, total=total, note="")

    def advance(done: float, /, *, total: float | None = None, note: str = "") -> None:
        if total is not None:
            bar.update(task, total=total)
        bar.update(task, completed=done, note=note)

    with bar:
        yield advance
