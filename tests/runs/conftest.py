"""Run folders as training and evaluation leave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder


def _write_run(root: Path, name: str, *, lr: float = 1e-4, difference: float = -0.1) -> RunFolder:
    run = RunFolder.create(name, root=root)
    recipe = Recipe.model_validate({"optim": {"lr": lr}, "data": {"root": f"{root}/{name}-data"}})
    run.recipe_path.write_text(recipe.to_yaml(), encoding="utf-8")
    paired = {"difference": difference, "low": difference - 0.02, "high": difference + 0.02}
    run.write_manifest(
        {
            "status": "finished",
            "step": 200,
            "date": "2026-01-02",
            "base": {"name": "tiny"},
            "dataset": {"fingerprint": "f" * 64, "clips": 12},
            "validation": [{"step": 200, "validation": paired, "train": paired}],
            "best": {"step": 200, "difference": difference},
        }
    )
    return run


def _evaluate(run: RunFolder, content: Any) -> None:
    (run.evaluation / "evaluation.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """Write a finished run: `make_run(name, lr=..., difference=...)`."""

    def make(name: str, *, lr: float = 1e-4, difference: float = -0.1) -> RunFolder:
        return _write_run(tmp_path, name, lr=lr, difference=difference)

    return make


@pytest.fixture
def evaluate() -> Callable[[RunFolder, Any], None]:
    """Write the scores of an evaluation into a run."""
    return _evaluate
