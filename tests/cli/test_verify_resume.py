from __future__ import annotations

import json
from pathlib import Path

import pytest

from sa3lora.cli.main import main


def test_the_verdict_is_json_where_it_is_asked_for(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(inputs)
    arguments = ["verify-resume", "mine/recipe.yaml", "--steps", "2", "--device", "cpu", "--json"]
    assert main(arguments) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["equal"], found["steps"], found["killed_at"]) == (True, 2, 1)
    assert found["adapters"][0] == found["adapters"][1]
    assert not list(Path("runs").glob("whole"))


def test_a_kill_behind_the_end_is_wrong_usage(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(inputs)
    assert main(["verify-resume", "mine/recipe.yaml", "--steps", "3", "--kill-at", "3"]) == 2
    assert "--kill-at must lie from 1 to 2" in capsys.readouterr().err
