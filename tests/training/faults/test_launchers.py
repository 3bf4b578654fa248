"""What launchers start, from their command lines: a base spread over the processes of one machine.

Accelerate runs the file that is shipped for GPUs. It starts processes by torchrun's own code where
a config asks for FSDP2 or several GPUs, and asks for no GPU itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sa3lora.recipe import recipes_folder
from sa3lora.runs import RunFolder
from tests.training.faults.laws import Train, newest_step, same_adapter, whole_checkpoints

pytestmark = pytest.mark.slow

_CONFIG = recipes_folder() / "accelerate" / "fsdp2.yaml"
_LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": [
        "accelerate.commands.launch", "--config_file", str(_CONFIG), "--main_process_port", "0",
    ],
}  # fmt: skip
_FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # what torchrun has no option for
_SETTINGS = ["data.frames_per_batch=70", "train.max_steps=6", "validate.every=3"]


def _launch(launcher: str, root: Path, recipe: Path, *more: str) -> subprocess.Popen[str]:
    train = ["-m", "sa3lora", "train", str(recipe), *_SETTINGS, "--device", "cpu"]
    own = _FSDP2 if launcher == "torchrun" else {}
    paths = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-m", *_LAUNCHERS[launcher], *train, *more],
        cwd=root,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(launched: subprocess.Popen[str]) -> str:
    """Wait until it is done, and give what it told."""
    told, _ = launched.communicate(timeout=240)
    assert launched.returncode == 0, told
    return told


def _process(launched: subprocess.Popen[str], rank: int) -> int:
    """Find a process that a launcher started."""
    tasks = Path(f"/proc/{launched.pid}/task/{launched.pid}/children")
    for child in map(int, tasks.read_text().split()):
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return child
    raise AssertionError(f"no process of rank {rank} was started")


@pytest.mark.parametrize("launcher", list(_LAUNCHERS))
def test_a_launched_run_logs_the_losses_of_one_process_and_goes_on_after_a_kill(
    train: Train, tmp_path: Path, recipe_file: Path, launcher: str
) -> None:
    alone = train(tmp_path / "alone", overrides=[*_SETTINGS, "train.grad_accum=2"])
    told = _finish(_launch(launcher, tmp_path, recipe_file, "--name", "whole"))
    assert "base     FSDP2: " in told
    whole, killed = (RunFolder(tmp_path / "runs" / name).path for name in ("whole", "killed"))
    events = EventAccumulator(str(whole))
    events.Reload()
    logged = [event.value for event in events.Scalars("train/loss")]
    assert logged == pytest.approx(list(alone["reports"][0]["losses"].values()), abs=1e-5)
    assert len(logged) == 6

    launched = _launch(launcher, tmp_path, recipe_file, "--name", "killed")
    deadline = time.monotonic() + 240
    while newest_step(killed) < 2 and time.monotonic() < deadline and launched.poll() is None:
        time.sleep(0.02)
    os.kill(_process(launched, 1), signal.SIGKILL)
    launched.communicate(timeout=240)
    assert launched.returncode != 0
    assert whole_checkpoints(killed)
    _finish(_launch(launcher, tmp_path, recipe_file, "--name", "killed", "--resume"))
    assert same_adapter(killed, whole)
