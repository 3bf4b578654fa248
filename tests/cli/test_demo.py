"""The verb `demo`, shortened."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from sa3lora.audio import probe_audio
from sa3lora.cli import demo_job
from sa3lora.cli.main import main


@pytest.fixture
def short_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("TRACKS", 8), ("TRACK_S", 3.0), ("REFERENCE_TRACKS", 4),
        ("EVALUATION_CLIPS", 2), ("EVALUATION_STEPS", 2),
    ):  # fmt: skip
        monkeypatch.setattr(demo_job, name, value)


def test_the_demo_runs_every_stage_and_leaves_what_it_says(
    tmp_path: Path, short_demo: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--steps", "2", "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "the same sound, bit for bit" in told
    assert "tensorboard --logdir" in told
    for name in ("strength_0", "strength_0.5", "strength_1", "merged"):
        assert probe_audio(out / "audio" / f"{name}.wav").duration_s == 3.0
    assert (out / "runs" / "style" / "adapter.safetensors").is_file()
    assert (out / "runs" / "style" / "evaluation" / "report.html").is_file()


def test_a_folder_in_use_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unknown_style_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path / "d"), "--style", "polka"]) == 2
    assert "polka" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("was_there", [True, False])
def test_a_demo_that_fails_leaves_its_folder_as_it_was(
    tmp_path: Path,
    short_demo: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    was_there: bool,
) -> None:
    out = tmp_path / "demo"
    if was_there:
        out.mkdir()

    def full(folder: Path, *rest: Any, **named: Any) -> None:
        assert list((folder / "tracks").iterdir())
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(demo_job, "_prep", full)
    assert main(["demo", "--out", str(out), "--quiet"]) == 1
    assert f"{out}: No space left on device" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == ([out] if was_there else [])
