from __future__ import annotations

import json
from pathlib import Path

import pytest

from sa3lora.cli.main import main

_FIGURES = {"ratio", "step_s", "forward_s", "frames_per_s", "peak_bytes", "estimated_bytes"}


def test_a_step_is_measured_beside_a_forward_pass(
    small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "--model", str(small_model), "--frames", "24", "--rounds", "2"]
    assert main([*command, "--device", "cpu", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= _FIGURES
    assert found["ratio"] > 1
    assert found["step_flops"] > 0
    assert 0 < found["efficiency"] < 1
    assert found["frames_per_s"] == pytest.approx(24 / found["step_s"])
    assert found["recomputation"] == "nothing is recomputed"
    assert {row["card_gb"] for row in found["fits"]} == {6, 8, 12, 16, 24}


def test_the_page_says_what_was_measured_and_what_fits(
    small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "--model", str(small_model), "--frames", "24", "--rounds", "1"]
    more = ["--type", "dora-rows", "-r", "2", "--mode", "lean", "--dtype", "bfloat16"]
    assert main([*command, *more, "--device", "cpu", "--quiet"]) == 0
    page = capsys.readouterr().out
    assert "dora-rows r 2, bfloat16" in page
    assert "norms, heads and gates are recomputed" in page
    assert "times a bare float32 forward pass" in page
    assert "bfloat16  " in page
