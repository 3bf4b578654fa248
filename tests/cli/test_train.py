from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sa3lora.adapters.files import read_adapter
from sa3lora.cli.main import main

_RECIPE = """
data: {frames_per_batch: 120}
adapter: {r: 2}
optim: {lr: 0.01}
train: {max_steps: 8}
validate: {every: 4, tuples: 4}
preview: {every: 0}
checkpoint: {every: 2}
"""


@pytest.fixture
def arguments(
    tmp_path: Path,
    make_latents: Callable[..., Path],
    small_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    (tmp_path / "recipe.yaml").write_text(_RECIPE, encoding="utf-8")
    make_latents(tmp_path / "latents")
    monkeypatch.chdir(tmp_path)
    model = f"model={small_model.resolve()}"
    return ["train", "recipe.yaml", "data.root=latents", model, "--device", "cpu"]


def test_a_run_killed_with_kill_9_ends_in_the_same_adapter(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sa3lora", *arguments, "--name", "killed"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any("checkpoints/step-00000002" in line.replace("\\", "/") for line in lines)
    process.kill()
    process.communicate()
    assert not Path("runs/killed/adapter.safetensors").exists()

    assert main([*arguments, "--name", "killed", "--resume"]) == 0
    assert main([*arguments, "--name", "whole"]) == 0
    one, two = (read_adapter(f"runs/{name}/adapter.safetensors") for name in ("killed", "whole"))
    assert one.sites == two.sites
    for site in one.sites:
        for name, tensor in one.tensors[site].items():
            assert torch.equal(tensor, two.tensors[site][name]), f"{site}.{name}"


def test_the_end_says_where_everything_is(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "train.max_steps=2", "--name", "one"]) == 0
    out, err = capfd.readouterr()
    assert "31 of 31 layers" in out
    assert f"adapter      {Path('runs/one/adapter.safetensors')}" in out
    assert f"tensorboard --logdir {Path('runs/one')}" in out
    assert "held-out clips: base" in out
    assert "step         2 of 2: step 2 has the lowest held-out loss of 1 validation (" in out
    assert "layers" not in err


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--dry-run", "--name", "one"]) == 0
    assert "trainable parameters" in capfd.readouterr().out
    assert not Path("runs").exists()


def test_a_taken_name_is_refused_and_left_alone(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("runs/one").mkdir(parents=True)
    Path("runs/one/notes.txt").write_text("mine")
    assert main([*arguments, "--name", "one"]) == 1
    err = capfd.readouterr().err
    assert "RunError" in err
    assert "--resume" in err
    assert "another --name" in err
    assert Path("runs/one/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("extra", "status", "message"),
    [
        (["adapter.lora_rank=4"], 1, "did you mean adapter.r?"),
        (["validate={every: 0, patience: 2}"], 1, "patience counts validations, but every is 0"),
        (["data.split=validation", "validate.patience=2"], 1, "there are no held-out clips"),
        (["data.root=nowhere"], 1, "there is no folder nowhere"),
        (["model=nothing"], 1, "there is no model 'nothing'"),
        (["adapter.type=loha"], 1, "adapter.type: "),
        (["--resume"], 2, "--name NAME"),
        (["--allow-change", "optim.lr"], 2, "add --resume --name NAME"),
        (["--resume", "--name", "none"], 1, "no run 'none'"),
        (["--name", "a/b", "--dry-run"], 1, "'a/b' is no name for a run"),
        (["--device", "cuda"], 2, "--device cuda"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    arguments: list[str],
    capfd: pytest.CaptureFixture[str],
    extra: list[str],
    status: int,
    message: str,
) -> None:
    if "cuda" in extra and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert main([*arguments, *extra]) == status
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not list(Path().glob("runs/*"))


def test_a_run_that_was_killed_before_it_began_can_be_resumed(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("runs/one").mkdir(parents=True)
    assert main([*arguments, "train.max_steps=1", "--name", "one", "--resume"]) == 0
    assert "starts at step 0" in capfd.readouterr().err
    assert Path("runs/one/adapter.safetensors").is_file()
