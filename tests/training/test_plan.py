from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sa3lora.adapters.inject import adapter_parameters
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.training.plan import make_plan
from sa3lora.training.processes import accelerated
from sa3lora.training.session import load_denoiser, set_up
from sa3lora.training.trainer import plan_training


def test_the_plan_counts_what_is_then_trained(
    source: ModelSource, make_recipe: Callable[..., Recipe]
) -> None:
    recipe = make_recipe("adapter.include=[.ff.]")
    plan = plan_training(recipe, source=source, device="cpu")
    with accelerated("cpu") as accelerator:
        denoiser = load_denoiser(set_up(recipe, source=source, accelerator=accelerator))
    trained = adapter_parameters(denoiser)
    assert plan.num_sites == len(trained) // 2 == 4
    assert plan.num_parameters == sum(parameter.numel() for _, parameter in trained)
    assert f"4 of 31 layers, {plan.num_parameters:,} trainable parameters" in plan.rows["adapter"]


def test_the_plan_counts_clips_and_frames_and_writes_nothing(
    source: ModelSource, make_recipe: Callable[..., Recipe], latents: Path
) -> None:
    before = sorted(latents.rglob("*"))
    text = "\n".join(plan_training(make_recipe(), source=source, device="cpu").lines())
    assert "6 clips of 3 tracks" in text
    assert "2 validation clips" in text
    assert sorted(latents.rglob("*")) == before


def test_what_does_nothing_is_said(source: ModelSource, make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe("data.frames_per_batch=1", "data.split=validation")
    notes = " ".join(plan_training(recipe, source=source, device="cpu").notes)
    assert "objective.coupling=sinkhorn changes nothing" in notes
    assert "no held-out loss, because the run trains on the validation split" in notes


def test_single_clips_are_coupled_with_those_of_other_processes(
    source: ModelSource, make_recipe: Callable[..., Recipe]
) -> None:
    recipe = make_recipe("data.frames_per_batch=1")
    with accelerated("cpu") as accelerator:
        setup = set_up(recipe, source=source, accelerator=accelerator)
    for world_size in (1, 2):
        plan = make_plan(
            recipe, source=source, data=setup.data, precision=setup.precision, device="cpu",
            world_size=world_size,
        )  # fmt: skip
        assert any("changes nothing" in note for note in plan.notes) is (world_size == 1)


def test_a_clip_beyond_the_batch_is_told_once(
    source: ModelSource, make_recipe: Callable[..., Recipe], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe("data.frames_per_batch=2", "objective.silence_s=0")
    notes = plan_training(recipe, source=source, device="cpu").notes
    assert sum("more than data.frames_per_batch=2" in note for note in notes) == 1
    assert not caplog.text


def test_clips_longer_than_the_limit_are_said_to_be_cropped(
    source: ModelSource, make_recipe: Callable[..., Recipe]
) -> None:
    recipe = make_recipe("data.max_duration_s=0.05")
    notes = " ".join(plan_training(recipe, source=source, device="cpu").notes)
    assert "cropped at another place each epoch" in notes


def test_an_optimizer_that_waits_for_a_gpu_is_said_to(
    source: ModelSource, make_recipe: Callable[..., Recipe]
) -> None:
    def notes(name: str, device: str) -> str:
        recipe = make_recipe(f"optim.name={name}")
        with accelerated("cpu") as accelerator:
            setup = set_up(recipe, source=source, accelerator=accelerator)
        plan = make_plan(
            recipe, source=source, data=setup.data, precision=setup.precision, device=device
        )
        return " ".join(plan.notes)

    # 31 layers with A and B each; a plan asks nothing of this device
    assert "prodigy reads two numbers of each of the 62 trained tensors" in notes("prodigy", "mps")
    assert "waited for" not in notes("prodigy", "cpu")
    assert "waited for" not in notes("adamw8bit", "mps")
