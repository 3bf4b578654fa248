"""The base spread over real processes changes no number of a run."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from sa3lora.adapters.files import read_adapter
from sa3lora.adapters.find import find_adapter
from sa3lora.models.source import ModelSource
from sa3lora.runs import RunFolder
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


_CHOICES = {
    "lora": ["adapter.type=lora"],
    "dora-rows": ["adapter.type=dora-rows"],
    "both magnitudes, packed": ["adapter.type=bora", "data.packing=true"],
    "kronecker factors": ["adapter.type=lokr", "adapter.lora_dropout=0"],
    "some blocks recomputed": ["train.checkpointing=lean", "optim.ema_decay=0.9"],
    "averages over batches": ["train.grad_accum=2", "adapter.type=dora-cols-xs"],
    "from the leading part": ["adapter.init=pissa"],
    "a base in bfloat16": ["train.base_dtype=bfloat16"],
    "products in bfloat16": ["train.dtype=bfloat16", "train.base_dtype=bfloat16"],
    "factors, bfloat16": ["adapter.type=lokr", "adapter.lora_dropout=0", "train.dtype=bfloat16"],
}
_SLOW = [each for each in _CHOICES if each not in ("lora", "dora-rows", "products in bfloat16")]


@pytest.mark.parametrize(
    ("choice", "processes", "reshard"),
    [
        ("lora", 2, "true"),
        ("dora-rows", 2, "false"),
        ("products in bfloat16", 2, "true"),
        *(pytest.param(each, 2, "true", marks=pytest.mark.slow) for each in _SLOW),
        pytest.param("dora-rows", 3, "true", marks=pytest.mark.slow),  # rows do not divide by it
    ],
)
def test_a_spread_base_gives_the_losses_and_the_adapter_of_whole_ones(
    train: Train, tmp_path: Path, choice: str, processes: int, reshard: str
) -> None:
    request: dict[str, Any] = {
        "overrides": [*_SETTINGS, *_CHOICES[choice]],
        "processes": processes,
        "timeout": 120,
    }
    whole = train(tmp_path / "whole", **request)
    environment = {**_FSDP2, "FSDP_RESHARD_AFTER_FORWARD": reshard}
    spread = train(tmp_path / "spread", **request, environment=environment)
    assert _losses(spread) == _losses(whole)
    previews = [
        sorted(p.name for p in (tmp_path / n / "previews").iterdir()) for n in ("whole", "spread")
    ]
    assert previews[0] == previews[1] != []
    one, two = (read_adapter(find_adapter(tmp_path / name)).tensors for name in ("whole", "spread"))
    for site, tensors in one.items():
        for name, tensor in tensors.items():
            assert torch.equal(two[site][name], tensor), (site, name)


def test_a_few_step_adapter_on_a_spread_base_learns_from_its_teacher_as_one_process_does(
    train: Train, tmp_path: Path, few_step: ModelSource, small_model: Path, teacher: Path
) -> None:
    settings = [
        f"model={few_step.folder}", f"distill.base={small_model}", f"distill.teacher={teacher}",
        "distill.teacher_steps=3", "distill.seeds=2", *_SETTINGS,
    ]  # fmt: skip
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    one = train(alone, overrides=[*settings, "train.grad_accum=2"], timeout=120)
    request: dict[str, Any] = {"processes": 2, "environment": _FSDP2, "timeout": 120}
    assert _losses(train(spread, overrides=settings, **request)) == pytest.approx(
        _losses(one), abs=1e-5
    )
    made = [
        sorted((p.name, p.read_bytes()) for p in (r / "teacher").iterdir()) for r in (alone, spread)
    ]
    assert made[0] == made[1] != []
    for before, after in zip(
        *(RunFolder(r).manifest()["validation"] for r in (alone, spread)), strict=True
    ):
        assert after["validation"]["adapter"] == pytest.approx(
            before["validation"]["adapter"], abs=1e-5
        )


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
