"""What a run folder says of its run, read without loading any weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from sa3lora.errors import RunError
from sa3lora.runs.folder import RunFolder

_NO_MANIFEST = "not begun"
_DAMAGED = "damaged"


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; both ends are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """Give the value with its sign, and the interval."""
        if self.low is None or self.high is None:
            return f"{self.value:+.4f}"
        return f"{self.value:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


@dataclass(frozen=True)
class RunSummary:
    """A run in a line.

    Attributes:
        name: Name of its folder.
        path: The folder.
        status: Of the manifest (`training`, `interrupted`, `diverged`, `finished`), `not begun`
            without one, `damaged` if it cannot be read.
        step: Number of finished steps.
        max_steps: Length of the run by its recipe.
        model: The base model.
        adapter: Type and rank.
        data: Name of the dataset's folder.
        clips: Where the paired losses come from, `validation` or `train`.
        validation: Paired difference to the base model at the newest validation.
        best_step: Step of the lowest difference.
        scores: Difference of each score of the newest evaluation, by its key.
        date: Day that it was started.
        problem: What is wrong with a damaged run.
        recipe: Every key with its value.
        dataset: What the manifest says of the dataset.
    """

    name: str
    path: Path
    status: str
    step: int
    max_steps: int | None
    model: str | None
    adapter: str | None
    data: str | None
    clips: str | None
    validation: Interval | None
    best_step: int | None
    scores: dict[str, Interval]
    date: str | None
    problem: str | None
    recipe: dict[str, Any]
    dataset: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Give plain values, the recipe apart."""
        return {
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(self).items()
            if key != "recipe"
        }


def list_runs(root: Path) -> list[RunSummary]:
    """Summarise every run below a folder, by name.

    Raises:
        RunError: If there is no such folder.
    """
    if not root.is_dir():
        raise RunError(f"there is no folder {root}. Name the folder that holds your runs.")
    return [read_run(RunFolder(path.parent)) for path in sorted(root.glob("*/recipe.yaml"))]


def read_run(run: RunFolder) -> RunSummary:
    """Summarise one run; what is damaged in it is told in `problem`."""
    problems: list[str] = []
    recipe = _flat_recipe(run.recipe_path, problems)
    manifest = _manifest(run, problems)
    scores = _scores(run.path / "evaluation" / "evaluation.json", problems)
    newest = next(iter(reversed(_entries(manifest))), None)
    kind = None if newest is None else "validation" if "validation" in newest else "train"
    adapter, rank = recipe.get("adapter.type"), recipe.get("adapter.r")
    root = recipe.get("data.root")
    base = manifest.get("base", {})
    best = manifest.get("best")
    return RunSummary(
        name=run.name,
        path=run.path,
        status=_DAMAGED if problems else manifest.get("status", _NO_MANIFEST),
        step=int(manifest.get("step", 0)),
        max_steps=recipe.get("train.max_steps"),
        model=base.get("name") or recipe.get("model"),
        adapter=None if adapter is None else f"{adapter} r{rank}",
        data=None if root is None else Path(str(root)).name,
        clips=kind,
        validation=None if newest is None or kind is None else _interval(newest[kind]),
        best_step=None if best is None else int(best["step"]),
        scores=scores,
        date=manifest.get("date"),
        problem="; ".join(problems) or None,
        recipe=recipe,
        dataset=manifest.get("dataset", {}),
    )


def _manifest(run: RunFolder, problems: list[str]) -> dict[str, Any]:
    if not run.manifest_path.is_file():
        return {}
    try:
        return run.manifest()
    except RunError as error:
        problems.append(str(error))
        return {}


def _entries(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in manifest.get("validation", []) if {"validation", "train"} & {*each}]


def _interval(found: dict[str, Any]) -> Interval:
    return Interval(float(found["difference"]), found.get("low"), found.get("high"))


def _flat_recipe(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read: {' '.join(str(error).split())}")
        return {}
    flat: dict[str, Any] = {}
    for section, values in (content if isinstance(content, dict) else {}).items():
        entries = values.items() if isinstance(values, dict) else [("", values)]
        flat |= {f"{section}.{key}".rstrip("."): value for key, value in entries}
    return flat


def _scores(path: Path, problems: list[str]) -> dict[str, Interval]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["scores"]
        gaps = {score["key"]: score["difference"] for score in found if score.get("difference")}
        return {
            key: Interval(float(gap["value"]), gap.get("low"), gap.get("high"))
            for key, gap in gaps.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"{path.name} is damaged: {error}")
        return {}
