"""What differs between two runs, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sa3lora.runs.summary import RunSummary

# Where a run keeps its files says nothing of what it computed.
_NO_DIFFERENCE = {"data.root"}


@dataclass(frozen=True)
class Difference:
    """One thing in which two runs differ.

    Attributes:
        part: `recipe`, `data` or `scores`.
        name: Key of the recipe, fact about the data, or score.
        first: Its value in the first run, None where it has none.
        second: Its value in the second.
    """

    part: str
    name: str
    first: Any
    second: Any


def compare_runs(first: RunSummary, second: RunSummary) -> list[Difference]:
    """List what differs between two runs: recipe, data, then scores."""
    return [
        *_different("recipe", first.recipe, second.recipe),
        *_different("data", first.dataset, second.dataset),
        *_different("scores", _results(first), _results(second)),
    ]


def _results(run: RunSummary) -> dict[str, str]:
    found = {"status": run.status, "step": str(run.step)}
    if run.validation is not None:
        found[f"{run.clips} difference"] = str(run.validation)
    if run.best_step is not None:
        found["best step"] = str(run.best_step)
    return found | {key: str(value) for key, value in run.scores.items()}


def _different(part: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    return [
        Difference(part, name, first.get(name), second.get(name))
        for name in dict.fromkeys([*first, *second])
        if name not in _NO_DIFFERENCE and first.get(name) != second.get(name)
    ]
