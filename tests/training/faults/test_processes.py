from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.faults.laws import Train, same_adapter, whole_checkpoints

# Unequal batches, and every random part of the objective: what one process draws must not depend
# on how many others there are.
_SETTINGS = ["data.frames_per_batch=70", "train.max_steps=6", "validate.every=0"]


def _losses(answer: dict[str, Any], rank: int = 0) -> list[float]:
    assert set(answer["codes"]) == {0}, answer
    losses = answer["reports"][rank]["losses"]
    return [losses[str(step)] for step in range(1, 7)]


@pytest.mark.parametrize(
    ("processes", "dtype"),
    [
        (2, "float32"),
        (2, "bfloat16"),
        pytest.param(3, "float32", marks=pytest.mark.slow),
    ],
)
def test_processes_share_a_step_and_get_the_losses_of_one_process(
    train: Train, tmp_path: Path, processes: int, dtype: str
) -> None:
    shared = [*_SETTINGS, f"train.dtype={dtype}"]
    settings = [*shared, f"train.grad_accum={processes}"]
    alone = _losses(train(tmp_path / "alone", overrides=settings))
    together = _losses(
        train(tmp_path / "together", overrides=shared, processes=processes, timeout=600)
    )
    # two numbers have one sum, in whatever order; three are added as the network likes
    assert together == (alone if dtype == "bfloat16" else pytest.approx(alone, abs=1e-5))
    assert len(set(alone)) == 6


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_a_killed_second_process_harms_no_checkpoint(
    train: Train, tmp_path: Path, share: float
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    told = train(whole, overrides=_SETTINGS, processes=2, timeout=600)
    assert set(told["codes"]) == {0}, told
    fault = {"kind": "time", "rank": 1, "after": share * told["cpu"][1]}
    killed = train(run, overrides=_SETTINGS, processes=2, fault=fault, timeout=600)
    assert killed["codes"][1] in (-signal.SIGKILL, 0)  # it may just have been done
    assert (killed["codes"][0] == 0) is (killed["codes"][1] == 0)
    whole_checkpoints(run)
    resumed = train(run, overrides=_SETTINGS, processes=2, resume=True, timeout=600)
    assert set(resumed["codes"]) == {0}, resumed
    assert same_adapter(run, whole)


@pytest.mark.slow
def test_torchrun_starts_two_processes_that_log_the_losses_of_one(
    train: Train, tmp_path: Path, recipe_file: Path
) -> None:
    alone = _losses(train(tmp_path / "alone", overrides=[*_SETTINGS, "train.grad_accum=2"]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = ["-m", "sa3lora", "train", str(recipe_file), *_SETTINGS, "--device", "cpu"]
    paths = os.pathsep.join(filter(None, sys.path))
    subprocess.run(
        [*launch, *command, "--name", "two"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        check=True,
    )
    events = EventAccumulator(str(tmp_path / "runs" / "two"))
    events.Reload()
    logged = [event.value for event in events.Scalars("train/loss")]
    assert logged == pytest.approx(alone, abs=1e-5)
