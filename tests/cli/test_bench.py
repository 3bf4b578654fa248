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
    assert "dora-rows r 2, adamw; base bfloat16, products bfloat16" in page
    assert "norms, heads and gates are recomputed" in page
    assert "times a bare float32 forward pass" in page
    assert "bfloat16  " in page


def test_base_and_optimizer_are_told_and_decide_what_fits(
    small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "--model", str(small_model), "--frames", "12", "--rounds", "1"]
    found = []
    for more in ([], ["--base", "nf4", "--optimizer", "muon"]):
        assert main([*command, *more, "--device", "cpu", "--quiet", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    plain, changed = found
    assert (plain["base_dtype"], plain["optimizer"]) == ("float32", "adamw")
    assert (changed["base_dtype"], changed["optimizer"]) == ("nf4", "muon")
    assert changed["base_bytes"] < plain["base_bytes"]
    pairs = zip(plain["fits"], changed["fits"], strict=True)
    assert all(after["num_frames"] > before["num_frames"] for before, after in pairs)


def test_what_cannot_be_trained_is_refused_as_in_training(
    small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "--model", str(small_model), "--device", "cpu", "--base", "nf4"]
    assert main([*command, "--type", "dora-rows"]) == 1
    told = capsys.readouterr().err
    assert "train.base_dtype: nf4, but dora-rows is trained against the lengths" in told
    assert "take lora or lora-xs, or keep the base in bfloat16" in told
