from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.training.faults.laws import Train, require_recovery, whole_checkpoints

_FILES = ["adapter.safetensors", "optimizer.pt", "random.pt", "manifest.json"]


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 0x10])
        path.write_bytes(content[:middle] + flipped + content[middle + 1 :])


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
@pytest.mark.parametrize("name", _FILES)
def test_a_damaged_checkpoint_is_passed_over_and_its_steps_are_taken_again(
    train: Train, whole: tuple[Path, dict[str, Any]], tmp_path: Path, name: str, how: str
) -> None:
    reference, _ = whole
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    (run / "adapter.safetensors").unlink()
    _damage(run / "checkpoints" / "step-00000006" / name, how)
    require_recovery(train, run, reference)


def test_a_shard_that_breaks_in_the_middle_of_a_run_harms_no_checkpoint(
    train: Train, whole: tuple[Path, dict[str, Any]], tmp_path: Path, recipe_file: Path
) -> None:
    reference, _ = whole
    data = tmp_path / "latents"
    shutil.copytree(recipe_file.parent / "latents", data)
    (shard,) = data.glob("*.arrow")
    kept = shard.read_bytes()
    where = [f"data.root={data}"]
    fault = {"kind": "shard", "path": str(shard), "step": 3}
    broken = train(tmp_path / "run", fault=fault, overrides=where)
    assert broken["codes"] != [0]
    assert max(whole_checkpoints(tmp_path / "run")) >= 2
    # Nobody can go on without the data, and to try does no harm.
    assert train(tmp_path / "run", resume=True, overrides=where)["codes"] != [0]
    assert max(whole_checkpoints(tmp_path / "run")) >= 2
    shard.write_bytes(kept)
    require_recovery(train, tmp_path / "run", reference, overrides=where)
