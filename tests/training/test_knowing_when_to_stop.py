"""Whole runs: the step that is chosen, an early end, and both after a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sa3lora.adapters.files import flat_tensors, read_adapter
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.trainer import train
from tests.training.killing import train_killed

Whole = Callable[[Recipe, ModelSource], RunFolder]
_MAX_STEPS = 40


def _same(first: Path, second: Path) -> bool:
    one, two = (flat_tensors(read_adapter(path)) for path in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def _kept(run: RunFolder) -> dict[str, bytes]:
    files = [run.path / "validation.jsonl", *(run.path / "best").iterdir()]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, make_latents: Callable[..., Path]) -> Path:
    root = tmp_path_factory.mktemp("clips") / "latents"
    return make_latents(root, tracks=12, clips_per_track=1, held_out=6, frames=(12, 12))


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe], clips: Path) -> Recipe:
    return make_recipe(
        f"data.root={clips}", "adapter.r=8", f"train.max_steps={_MAX_STEPS}",
        "objective.inpaint=[0, 1, 0]", "checkpoint.every=8",
        "validate={every: 4, tuples: 60, drift: false}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    runs: list[RunFolder] = []

    def get(recipe: Recipe, source: ModelSource) -> RunFolder:
        if not runs:
            run = RunFolder.create("whole", root=tmp_path_factory.mktemp("runs"))
            train(recipe, run=run, source=source, device="cpu")
            runs.append(run)
        return runs[0]

    return get


def test_the_adapter_is_that_of_the_best_step_and_says_so(
    source: ModelSource, recipe: Recipe, whole: Whole
) -> None:
    run = whole(recipe, source)
    manifest = run.manifest()
    step = manifest["adapter"]["step"]
    assert step == manifest["best"]["step"] < _MAX_STEPS
    assert read_adapter(run.adapter_path).metadata["sa3lora.step"] == str(step)
    assert _same(run.adapter_path, run.path / "best" / f"step-{step:08d}.safetensors")


def test_a_killed_run_chooses_the_same_step_as_an_uninterrupted_one(
    tmp_path: Path, source: ModelSource, recipe: Recipe, whole: Whole
) -> None:
    run = RunFolder.create("killed", root=tmp_path)
    train_killed(recipe, run=run, source=source, step=30)
    assert _kept(run) == _kept(whole(recipe, source))
    assert _same(run.adapter_path, whole(recipe, source).adapter_path)


def test_a_run_out_of_patience_ends_and_can_be_given_more(
    tmp_path: Path, source: ModelSource, recipe: Recipe, whole: Whole
) -> None:
    section = recipe.validation.model_copy(update={"patience": 2})
    hasty = recipe.model_copy(update={"validation": section})
    run = RunFolder.create("hasty", root=tmp_path)
    result = train(hasty, run=run, source=source, device="cpu")
    assert result.adapter_step is not None
    assert result.step == result.adapter_step + 8 < _MAX_STEPS
    assert run.manifest()["status"] == "finished"
    again = train(hasty, run=run, source=source, device="cpu", resume=True)
    assert (again.step, again.adapter_step) == (result.step, result.adapter_step)
    train(recipe, run=run, source=source, device="cpu", resume=True)
    assert _kept(run) == _kept(whole(recipe, source))
    assert _same(run.adapter_path, whole(recipe, source).adapter_path)


def test_the_last_step_is_written_where_the_recipe_wants_it(
    tmp_path: Path, source: ModelSource, recipe: Recipe
) -> None:
    section = recipe.validation.model_copy(update={"select": "last"})
    to_the_last = recipe.model_copy(update={"validation": section})
    run = RunFolder.create("last", root=tmp_path)
    last = train(to_the_last, run=run, source=source, device="cpu")
    assert last.adapter_step == _MAX_STEPS
    checkpoint = run.checkpoints / f"step-{_MAX_STEPS:08d}" / "adapter.safetensors"
    assert _same(run.adapter_path, checkpoint)
    # The same run, resumed with another wish, writes its best step instead.
    best = train(recipe, run=run, source=source, device="cpu", resume=True)
    assert best.adapter_step is not None
    assert best.adapter_step < _MAX_STEPS
    assert best.validation is not None
    assert best.validation.step == best.adapter_step
    assert not _same(run.adapter_path, checkpoint)
