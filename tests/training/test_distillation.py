from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator

from sa3lora.adapters.files import read_adapter, write_adapter
from sa3lora.adapters.stacked import Stacked, stack_metadata
from sa3lora.errors import AdapterMismatchError, RecipeError
from sa3lora.models.source import ModelSource
from sa3lora.recipe import DistillSection, Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.data import TrainingData
from sa3lora.training.distillation import distillation_loss
from sa3lora.training.events import TrainEvent
from sa3lora.training.processes import accelerated
from sa3lora.training.session import build_text, load_denoiser, set_up
from sa3lora.training.teacher import (
    PairFolder,
    Wanted,
    draw_start,
    make_pair,
    make_pairs,
    training_pairs,
)
from sa3lora.training.teacher_source import teacher_identity
from sa3lora.training.trainer import plan_training, train

MakeRecipe = Callable[..., Recipe]


class _Killed(BaseException):
    """Stands for a process that is gone."""


def _hash(run: RunFolder) -> str:
    return read_adapter(run.adapter_path).content_hash


def test_a_killed_run_ends_in_the_same_adapter_and_the_teacher_works_once(
    tmp_path: Path, few_step: ModelSource, make_student: MakeRecipe
) -> None:
    recipe = make_student("train.max_steps=4")
    whole = RunFolder.create("whole", root=tmp_path)
    train(recipe, run=whole, source=few_step, device="cpu")
    run = RunFolder.create("killed", root=tmp_path)

    def kill(event: TrainEvent) -> None:
        if event.kind == "step" and event.step == 3:
            raise _Killed

    with pytest.raises(_Killed):
        train(recipe, run=run, source=few_step, device="cpu", progress=kill)
    made = {path: path.stat().st_mtime_ns for path in (run.path / "teacher").iterdir()}
    assert len(made) == 2 * 6 + 6, "two of each training clip, six to validate on"
    lost = sorted(made)[3]
    lost.write_bytes(b"torn")
    train(recipe, run=run, source=few_step, device="cpu", resume=True)
    after = {path: path.stat().st_mtime_ns for path in (run.path / "teacher").iterdir()}
    assert {path for path in made if after[path] != made[path]} == {lost}
    assert _hash(run) == _hash(whole)
    metadata = read_adapter(run.adapter_path).metadata
    assert metadata["sa3lora.base_id"] == "quick"
    assert metadata["sa3lora.dit_hash"] == few_step.dit_hash
    assert str(tmp_path) not in metadata["sa3lora.recipe"]


def test_training_lowers_the_distance_from_the_teacher(
    tmp_path: Path, few_step: ModelSource, make_student: MakeRecipe
) -> None:
    recipe = make_student("train.max_steps=30", "objective.silence_s=0")
    run = RunFolder.create("student", root=tmp_path)
    train(recipe, run=run, source=few_step, device="cpu")

    def distance(*overrides: str) -> float:
        with accelerated("cpu") as accelerator:
            setup = set_up(
                make_student("objective.silence_s=0", *overrides),
                source=few_step, accelerator=accelerator,
            )  # fmt: skip
            denoiser, text = load_denoiser(setup), build_text(setup)
        pairs = PairFolder(run.path / "teacher")
        numbers = range(len(setup.data.train))
        losses = [
            distillation_loss(
                denoiser,
                [pairs.read(setup.data.train.rows[n], k) for n in numbers],
                text=[text(setup.data.train.rows[n].caption) for n in numbers],
            )
            for k in range(2)
        ]
        return sum(float(loss.total.detach()) for loss in losses)

    assert distance(f"adapter.from={run.adapter_path}") < 0.8 * distance()


@pytest.mark.parametrize("packed", [False, True])
def test_a_teacher_of_one_step_without_guidance_is_at_no_distance_from_itself(
    source: ModelSource, make_recipe: MakeRecipe, packed: bool
) -> None:
    recipe = make_recipe()
    data = TrainingData(recipe, source=source)
    denoiser = source.load_denoiser()
    section = DistillSection(teacher_steps=1, teacher_guidance=1.0, sampler="euler")
    text = [torch.randn(3, 24, generator=Generator().manual_seed(n)) for n in range(3)]
    pairs = [
        make_pair(
            denoiser,
            draw_start(recipe, data, source.config, wanted=Wanted(data.train, n, 0, 42)),
            text=text[n], section=section, config=source.config,
        )
        for n in range(3)
    ]  # fmt: skip
    loss = distillation_loss(denoiser, pairs, text=text, packed=packed)
    assert float(loss.total) < 1e-9
    wrong = distillation_loss(denoiser, pairs, text=text[::-1], packed=packed)
    assert float(wrong.total) > 1e-6


def test_starts_lie_at_the_noise_levels_of_the_sampler_and_differ_by_seed_and_clip(
    source: ModelSource, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe("distill.student_steps=4")
    data = TrainingData(recipe, source=source)
    starts = {
        (n, k): draw_start(recipe, data, source.config, wanted=Wanted(data.train, n, k, 42))
        for n in range(2)
        for k in range(30)
    }
    assert {start.u for start in starts.values()} == {1.0, 0.75, 0.5, 0.25}
    again = draw_start(recipe, data, source.config, wanted=Wanted(data.train, 1, 4, 42))
    assert torch.equal(again.latents, starts[1, 4].latents)
    values = {float(start.latents[0, 0]) for start in starts.values()}
    assert len(values) > 50
    noise_alone = [start.latents for start in starts.values() if start.u == 1.0]
    assert all(abs(float(latents.std()) - 1) < 0.35 for latents in noise_alone)


def test_pairs_come_back_as_they_were_stored(
    tmp_path: Path, make_student: MakeRecipe, few_step: ModelSource
) -> None:
    with accelerated("cpu") as accelerator:
        setup = set_up(make_student(), source=few_step, accelerator=accelerator)
        text = build_text(setup)
        notes: list[str] = []
        make_pairs(setup, text, tmp_path / "one", tell=notes.append)
        make_pairs(setup, text, tmp_path / "one", tell=notes.append)
        make_pairs(setup, text, tmp_path / "two", tell=notes.append)
    assert notes == ["the teacher makes 18 of 18 latents, 6 of them to validate on"] * 2
    one, two = PairFolder(tmp_path / "one"), PairFolder(tmp_path / "two")
    for wanted in training_pairs(setup.recipe, setup.data):
        first, second = (each.read(wanted.clip, wanted.number) for each in (one, two))
        assert torch.equal(first.target, second.target)
        assert torch.equal(first.start, second.start)
        start = draw_start(setup.recipe, setup.data, few_step.config, wanted=wanted)
        assert torch.equal(first.start, start.latents), "stored exactly as the teacher saw it"
    clip = training_pairs(setup.recipe, setup.data)[0].clip
    assert one.has(clip, 0)
    assert not one.has(replace(clip, clip_id="another"), 0)
    assert not one.has(replace(clip, caption="other words for the same sound"), 0)


def test_what_does_not_count_is_said(few_step: ModelSource, make_student: MakeRecipe) -> None:
    plan = plan_training(make_student(), source=few_step, device="cpu")
    assert any("only silence_s counts, and losses are" in note for note in plan.notes)


def test_a_few_step_model_without_a_teacher_is_pointed_out(
    few_step: ModelSource, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(f"model={few_step.folder}")
    plan = plan_training(recipe, source=few_step, device="cpu")
    assert any("quick is a few-step model" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.base=null"], r"distill\.base: quick has no base of a known name"),
        (["distill.base=tiny"], r"distill\.base: tiny makes other latents than quick"),
        (["objective.prior_weight=1"], r"objective: prior_weight and min_snr_gamma weigh"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(
    few_step: ModelSource, make_student: MakeRecipe, overrides: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        plan_training(make_student(*overrides), source=few_step, device="cpu")


def test_a_run_folder_stands_for_its_adapter(
    few_step: ModelSource, make_student: MakeRecipe, teacher: Path
) -> None:
    def identity(path: Path) -> object:
        return teacher_identity(make_student(f"distill.teacher={path}"), few_step)

    assert identity(teacher.parent) == identity(teacher)


def test_a_teacher_that_needs_other_adapters_is_refused(
    tmp_path: Path, few_step: ModelSource, make_student: MakeRecipe, teacher: Path
) -> None:
    adapter = read_adapter(teacher)
    below = stack_metadata([Stacked("vinyl", "ab" * 32, 0.5)])
    path = tmp_path / "above.safetensors"
    write_adapter(path, replace(adapter, metadata=adapter.metadata | below))
    with pytest.raises(RecipeError, match="trained on top of other adapters"):
        plan_training(make_student(f"distill.teacher={path}"), source=few_step, device="cpu")


def test_a_teacher_of_another_base_is_refused(
    few_step: ModelSource, make_student: MakeRecipe
) -> None:
    recipe = make_student(f"distill.base={few_step.folder}")
    with pytest.raises(AdapterMismatchError, match="small"):
        plan_training(recipe, source=few_step, device="cpu")
