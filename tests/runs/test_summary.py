from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sa3lora.errors import RunError
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder, list_runs
from sa3lora.runs.summary import Interval

MakeRun = Callable[..., RunFolder]
Evaluate = Callable[[RunFolder, Any], None]


def test_a_run_in_a_line(tmp_path: Path, make_run: MakeRun, evaluate: Evaluate) -> None:
    run = make_run("vinyl")
    gap = {"value": -0.5, "low": None, "high": None}
    scores = [{"key": "fad", "difference": gap}, {"key": "drift", "difference": None}]
    evaluate(run, {"scores": scores})
    (found,) = list_runs(tmp_path)
    assert (found.name, found.status, found.step, found.max_steps) == (
        "vinyl",
        "finished",
        200,
        1000,
    )
    assert (found.model, found.adapter, found.data) == ("tiny", "lora r16", "vinyl-data")
    assert (found.clips, found.best_step, found.date) == ("validation", 200, "2026-01-02")
    assert str(found.validation) == "-0.1000 (-0.1200 to -0.0800)"
    assert found.scores == {"fad": Interval(-0.5)}
    assert found.problem is None
    assert json.loads(json.dumps(found.to_json()))["scores"]["fad"]["value"] == -0.5


def test_other_folders_are_no_runs_and_a_run_that_has_not_begun_is_one(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    run = RunFolder.create("new", root=tmp_path)
    run.recipe_path.write_text(Recipe().to_yaml(), encoding="utf-8")
    (found,) = list_runs(tmp_path)
    assert (found.name, found.status, found.validation) == ("new", "not begun", None)


@pytest.mark.parametrize("name", ["recipe.yaml", "manifest.json", "evaluation/evaluation.json"])
def test_a_damaged_file_is_named_and_hides_no_other_run(
    tmp_path: Path, make_run: MakeRun, evaluate: Evaluate, name: str
) -> None:
    make_run("whole")
    run = make_run("broken")
    evaluate(run, {"scores": []})
    (run.path / name).write_text("[: {", encoding="utf-8")
    broken, whole = list_runs(tmp_path)
    assert (broken.status, whole.status) == ("damaged", "finished")
    assert name.rpartition("/")[2] in str(broken.problem)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no folder"):
        list_runs(tmp_path / "none")
