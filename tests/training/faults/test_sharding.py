"""The base spread over real processes changes no number of a run."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from sa3lora.adapters.files import read_adapter
from tests.training.faults.laws import Train, same_adapter, whole_checkpoints

_FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
_SETTINGS = [
    "train.max_steps=4",
    "validate={every: 2, tuples: 3}",
    "preview={every: 2, steps: 2, duration_s: 0.5}",
    "adapter.lora_dropout=0.1",
]


def _losses(answer: dict[str, Any]) -> list[float]:
    assert set(answer["codes"]) == {0}, answer
    return list(answer["reports"][0]["losses"].values())


@pytest.mark.parametrize("choice", ["lora", "dora-rows"])
def test_a_spread_base_gives_the_losses_and_the_adapter_of_whole_ones(
    train: Train, tmp_path: Path, choice: str
) -> None:
    settings = [*_SETTINGS, f"adapter.type={choice}"]
    whole = train(tmp_path / "whole", overrides=settings, processes=2)
    spread = train(
        tmp_path / "spread", overrides=settings, processes=2, environment=_FSDP2, timeout=60
    )
    assert _losses(spread) == pytest.approx(_losses(whole), abs=1e-5)
    one, two = (
        read_adapter(tmp_path / name / "adapter.safetensors").tensors
        for name in ("whole", "spread")
    )
    for site, tensors in one.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(two[site][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("choice", ["lora", "bora-xs"])
def test_each_process_holds_its_share_of_the_base(
    train: Train, tmp_path: Path, choice: str
) -> None:
    settings = [*_SETTINGS, f"adapter.type={choice}"]
    answer = train(
        tmp_path, load=True, overrides=settings, processes=2, environment=_FSDP2, timeout=60
    )
    assert set(answer["codes"]) == {0}, answer
    first, second = answer["reports"]
    assert first["held"] == first["expected"]
    spread = first["base"] - first["whole"]
    assert first["held"] + second["held"] == first["base"] + first["whole"]
    assert first["held"] - first["whole"] == pytest.approx(spread / 2, rel=0.01)
    assert first["whole"] < 0.1 * first["base"]


def test_a_killed_second_process_ends_the_first_and_the_run_goes_on_as_if_whole(
    train: Train, tmp_path: Path
) -> None:
    settings = ["train.max_steps=6", "objective.prior_weight=1", "train.checkpointing=true"]
    request: dict[str, Any] = {"overrides": settings, "processes": 2, "environment": _FSDP2}
    told = train(tmp_path / "whole", **request, timeout=120)
    assert len(_losses(told)) == 6
    fault = {"kind": "time", "rank": 1, "after": 0.6 * told["cpu"][1]}
    run = tmp_path / "run"
    killed = train(run, **request, fault=fault, unattended=True, timeout=120)
    assert killed["codes"][1] == -signal.SIGKILL
    assert killed["codes"][0] > 0, "it ended by itself, with an error"
    whole_checkpoints(run)
    resumed = train(run, **request, resume=True, timeout=120)
    assert set(resumed["codes"]) == {0}, resumed
    assert same_adapter(run, tmp_path / "whole")
