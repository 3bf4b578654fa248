from __future__ import annotations

from pathlib import Path

import pytest

from sa3lora.errors import EvaluationError
from sa3lora.evaluation.report import check_output, replaced_folder


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
