"""A server of forked training processes, and a run that nothing ever happened to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.faults.laws import Train

_RECIPE = """
model: MODEL
data: {root: DATA, frames_per_batch: 70}
adapter: {r: 2, lora_dropout: 0.1}
objective: {silence_s: 0.02}
optim: {lr: 0.01, schedule: cosine}
train: {max_steps: 6}
validate: {every: 3, tuples: 3}
preview: {every: 0}
checkpoint: {every: 1, keep: 2}
"""


@pytest.fixture(scope="session")
def recipe_file(
    tmp_path_factory: pytest.TempPathFactory, small_model: Path, make_latents: Callable[..., Path]
) -> Path:
    root = tmp_path_factory.mktemp("faults")
    data = make_latents(root / "latents")
    text = _RECIPE.replace("MODEL", str(small_model.resolve())).replace("DATA", str(data))
    path = root / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Iterator[Train]:
    if not hasattr(os, "fork") or not Path("/proc/self/stat").exists():
        pytest.skip("forks processes and reads /proc, so it needs Linux")
    scratch = tmp_path_factory.mktemp("server")
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("server.py")), str(scratch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    requests, answers = server.stdin, server.stdout

    def send(run: Path, **request: Any) -> dict[str, Any]:
        run.mkdir(parents=True, exist_ok=True)
        whole = {"run": str(run), "recipe": str(recipe_file), **request}
        requests.write(json.dumps(whole) + "\n")
        requests.flush()
        answer: dict[str, Any] = json.loads(answers.readline())
        return answer

    yield send
    requests.close()
    server.wait(timeout=30)


@pytest.fixture(scope="session")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Give an uninterrupted run and what the server told of it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    answer = train(run)
    assert answer["codes"] == [0], answer
    return run, answer
