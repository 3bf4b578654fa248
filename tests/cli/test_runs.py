from __future__ import annotations

import json
from pathlib import Path

import pytest

from sa3lora.cli.main import main
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder


@pytest.fixture
def two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rank in (("vinyl", 8), ("tape", 16)):
        run = RunFolder.create(name)
        recipe = Recipe.model_validate({"adapter": {"r": rank}})
        run.recipe_path.write_text(recipe.to_yaml(), encoding="utf-8")
        run.write_manifest({"status": "interrupted", "step": 7, "base": {"name": "tiny"}})


@pytest.mark.usefixtures("two_runs")
def test_runs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    for word in ("vinyl", "lora r8", "tape", "lora r16", "interrupted", "7 of 1000"):
        assert word in out
    assert main(["runs", "runs", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found] == ["tape", "vinyl"]


@pytest.mark.usefixtures("two_runs")
def test_two_runs_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "diff", "vinyl", "runs/tape", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found == {"part": "recipe", "name": "adapter.r", "first": 8, "second": 16}
    assert main(["runs", "diff", "vinyl", "tape"]) == 0
    out = capsys.readouterr().out
    assert "adapter.r" in out
    assert "optim" not in out
    assert main(["runs", "diff", "vinyl", "vinyl"]) == 0
    assert "do not differ" in capsys.readouterr().out


@pytest.mark.usefixtures("two_runs")
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["diff", "vinyl"], 2, "diff compares two runs, got 1"),
        (["diff", "vinyl", "none"], 1, "Runs in runs: tape, vinyl"),
        (["vinyl", "tape"], 2, "To compare: runs diff A B"),
        (["nowhere"], 1, "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_message(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", *arguments]) == status
    assert message in capsys.readouterr().err
