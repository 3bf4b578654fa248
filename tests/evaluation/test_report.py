from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sa3lora.audio import read_audio, spectrogram_png, write_audio
from sa3lora.errors import EvaluationError
from sa3lora.evaluation.report import check_output, replaced_folder, write_report
from sa3lora.evaluation.result import AdapterUse, ClipPair, EvaluationResult, Settings


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_half_way(out: Path) -> None:
    with replaced_folder(out) as fresh:
        (fresh / "evaluation.json").write_text("half", encoding="utf-8")
        raise OSError("disk full")


def test_a_new_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "evaluation"
    with replaced_folder(out) as fresh:
        (fresh / "evaluation.json").write_text("{}", encoding="utf-8")
        assert not out.exists()
    assert listing(out) == ["evaluation.json"]
    assert listing(out.parent) == ["evaluation"]


def test_an_earlier_evaluation_is_replaced_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    out.mkdir()
    for name in ("evaluation.json", "old.wav"):
        (out / name).write_text("old", encoding="utf-8")
    with replaced_folder(out) as fresh:
        (fresh / "evaluation.json").write_text("new", encoding="utf-8")
    assert listing(out) == ["evaluation.json"]
    assert (out / "evaluation.json").read_text(encoding="utf-8") == "new"
    assert listing(tmp_path) == ["evaluation"]


def test_a_failure_leaves_the_earlier_evaluation_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    out.mkdir()
    (out / "evaluation.json").write_text("old", encoding="utf-8")
    with pytest.raises(OSError, match="disk full"):
        fail_half_way(out)
    assert (out / "evaluation.json").read_text(encoding="utf-8") == "old"
    assert listing(tmp_path) == ["evaluation"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "song.wav").write_bytes(b"precious")
    with pytest.raises(EvaluationError, match="holds other files"):
        check_output(tmp_path)
    with pytest.raises(EvaluationError, match="is a file"):
        check_output(tmp_path / "song.wav")
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty")


def test_the_first_clips_are_drawn_and_the_page_shows_what_is_there(tmp_path: Path) -> None:
    noise = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    names = [f"{number:03d}.wav" for number in range(9)]
    for system in ("base", "adapter"):
        (tmp_path / system).mkdir()
        for name in names:
            write_audio(tmp_path / system / name, noise, 8000)
    result = EvaluationResult(
        model="tiny",
        adapters=(AdapterUse("a.safetensors", 1.0, "cd" * 32),),
        settings=Settings(9, 1.0, 7, None, None),
        scores=(),
        clips=tuple(ClipPair("p", 7, f"base/{n}", f"adapter/{n}", 0.1, 0.2) for n in names),
        extrapolations={},
        notes=(),
        folder=tmp_path,
    )
    write_report(result, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r'<img [^>]*src="([^"]+)"', page)
    assert len(shown) == 16
    assert {str(path.relative_to(tmp_path).as_posix()) for path in tmp_path.glob("*/*.png")} == {
        *shown
    }
    audio, rate = read_audio(tmp_path / "adapter/007.wav")
    assert (tmp_path / "adapter/007.png").read_bytes() == spectrogram_png(audio, rate)
