from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.faults.laws import Train, require_recovery, same_adapter, whole_checkpoints


def _sizes(run: Path) -> list[int]:
    files = (run / "checkpoints" / "step-00000006").iterdir()
    return sorted({path.stat().st_size for path in files})


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_a_limit_on_file_sizes_ends_the_run_in_one_message_and_harms_nothing(
    train: Train, whole: tuple[Path, dict[str, Any]], tmp_path: Path, which: int
) -> None:
    reference, _ = whole
    run = tmp_path / "run"
    # Files of the run as it stood after step 5: the limit meets the checkpoint of step 6.
    shutil.copytree(reference, run)
    (run / "adapter.safetensors").unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    limit = _sizes(reference)[which] - 1
    answer = train(run, resume=True, fault={"kind": "file size", "bytes": limit})
    assert answer["codes"] == [1], answer
    assert "File too large" in answer["reports"][0]["error"]
    assert whole_checkpoints(run) == [5]
    require_recovery_of_the_last_step(train, run, reference)


def require_recovery_of_the_last_step(train: Train, run: Path, reference: Path) -> None:
    answer = train(run, resume=True)
    assert answer["codes"] == [0], answer
    assert same_adapter(run, reference)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can make a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("free_checkpoints", [0.5, 1.5, 2.5])
def test_a_full_disk_ends_the_run_in_one_message_and_harms_nothing(
    train: Train, whole: tuple[Path, dict[str, Any]], small_disk: Path, free_checkpoints: float
) -> None:
    reference, _ = whole
    run = small_disk / "run"
    run.mkdir()
    one = sum(_sizes(reference))
    ballast = small_disk / "ballast"
    size = shutil.disk_usage(small_disk).free - int(free_checkpoints * one) - 64 * 1024
    ballast.write_bytes(bytes(size))
    answer = train(run)
    assert answer["codes"] == [1], answer
    assert "No space left on device" in answer["reports"][0]["error"]
    steps = whole_checkpoints(run)
    assert (free_checkpoints < 1) == (steps == [])
    ballast.unlink()
    require_recovery(train, run, reference)
