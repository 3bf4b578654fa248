from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.training.faults.laws import Train, newest_step, require_recovery, whole_checkpoints

_AT_OPERATIONS = 24
_AT_TIMES = 8
_TWICE = 3


def _share(seed: int) -> float:
    """Draw where in a run the fault comes, from 0 to 1."""
    return random.Random(seed).random()


@pytest.mark.parametrize("seed", range(_AT_OPERATIONS))
def test_a_kill_before_any_file_operation_loses_no_checkpoint(
    train: Train, whole: tuple[Path, dict[str, Any]], tmp_path: Path, seed: int
) -> None:
    reference, told = whole
    at = 1 + int(_share(seed) * told["reports"][0]["operations"])
    killed = train(tmp_path / "run", fault={"kind": "operation", "at": at})
    assert killed["codes"] == [-signal.SIGKILL]
    whole_checkpoints(tmp_path / "run")
    require_recovery(train, tmp_path / "run", reference)


@pytest.mark.parametrize("seed", range(_AT_TIMES))
def test_a_kill_at_any_time_loses_no_checkpoint(
    train: Train, whole: tuple[Path, dict[str, Any]], tmp_path: Path, seed: int
) -> None:
    reference, told = whole
    after = _share(100 + seed) * told["cpu"][0]
    killed = train(tmp_path / "run", fault={"kind": "time", "after": after})
    assert killed["codes"] in ([-signal.SIGKILL], [0])  # it may just have been done
    whole_checkpoints(tmp_path / "run")
    require_recovery(train, tmp_path / "run", reference)


@pytest.mark.parametrize("seed", range(_TWICE))
def test_a_kill_while_resuming_from_a_kill_loses_no_checkpoint(
    train: Train, whole: tuple[Path, dict[str, Any]], tmp_path: Path, seed: int
) -> None:
    reference, told = whole
    operations = told["reports"][0]["operations"]
    at = operations // 2 + int(_share(200 + seed) * operations / 4)
    train(tmp_path / "run", fault={"kind": "operation", "at": at})
    before = newest_step(tmp_path / "run")
    assert before > 0
    again = 1 + int(_share(300 + seed) * operations / 6)
    train(tmp_path / "run", resume=True, fault={"kind": "operation", "at": again})
    assert newest_step(tmp_path / "run") >= before
    require_recovery(train, tmp_path / "run", reference)
