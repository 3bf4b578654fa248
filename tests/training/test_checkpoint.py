from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sa3lora.errors import CheckpointError
from sa3lora.training import checkpoint
from sa3lora.training.checkpoint import (
    finish_interrupted,
    newest_checkpoint,
    write_checkpoint,
)


def _write(root: Path, step: int, *, keep: int = 3) -> Path:
    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(bytes([step]))

    return write_checkpoint(root, step, fill=fill, info={"at": step}, keep=keep)


def test_the_newest_checkpoint_comes_back_with_its_info(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        _write(tmp_path, step)
    found, passed_over = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.info, passed_over) == (100, {"at": 100}, [])
    assert found.folder.name == "step-00000100"


@pytest.mark.parametrize("damage", ["changed", "missing", "no manifest", "cut manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path, 1)
    newest = _write(tmp_path, 2)
    if damage == "changed":
        (newest / "weights").write_bytes(b"x")
    elif damage == "missing":
        (newest / "weights").unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text('{"step": 2')
    found, passed_over = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "step-00000002" in passed_over[0]
    assert "Passing over it for the one before" in caplog.text


def test_only_the_newest_few_stay(tmp_path: Path) -> None:
    for step in range(1, 6):
        _write(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_a_process_that_dies_while_writing_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, 1)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_manifest", die)
        with pytest.raises(KeyboardInterrupt):
            _write(tmp_path, 2)
    found, passed_over = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, passed_over) == (1, [])
    _write(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_step_that_is_written_again_is_never_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, 1)
    _write(tmp_path, 2)
    renames = []

    def die_the_second_time(path: Path, target: Path) -> None:
        renames.append(path)
        if len(renames) == 2:  # the old one is out of the way, the new one not yet in its place
            raise KeyboardInterrupt
        os.rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die_the_second_time)
        with pytest.raises(KeyboardInterrupt):
            _write(tmp_path, 2)
    assert not (tmp_path / "step-00000002").exists()
    finish_interrupted(tmp_path)
    found, passed_over = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, passed_over) == (2, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_full_disk_leaves_nothing_half_written_and_says_what_to_do(tmp_path: Path) -> None:
    _write(tmp_path, 1)

    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"No space left on device.*--resume"):
        write_checkpoint(tmp_path, 2, fill=fill, info={}, keep=3)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_a_step_can_be_written_again(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    _write(tmp_path, 1)
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "missing") == (None, [])
