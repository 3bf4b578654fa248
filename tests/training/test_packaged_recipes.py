"""Packaged recipes run: two steps at toy size, as they are but for model, data and sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sa3lora.adapters.files import read_adapter
from sa3lora.models.source import ModelSource
from sa3lora.recipe import load_recipe
from sa3lora.runs import RunFolder
from sa3lora.training.trainer import train

_SIZES = (
    "train.max_steps=2", "data.frames_per_batch=120", "validate={every: 2, tuples: 4}",
    "preview={every: 2, steps: 1, duration_s: 0.1, prompts: [a]}", "objective.silence_s=0.02",
)  # fmt: skip


@pytest.fixture
def run_recipe(
    tmp_path: Path, source: ModelSource, small_model: Path, latents: Path
) -> Callable[..., Path]:
    def run(name: str, *overrides: str) -> Path:
        fixed = [f"model={small_model}", f"data.root={latents}", *_SIZES]
        recipe = load_recipe(name, [*fixed, *overrides])
        result = train(
            recipe, run=RunFolder.create(name, root=tmp_path), source=source, device="cpu"
        )
        assert result.adapter_path is not None
        return result.adapter_path

    return run


@pytest.mark.parametrize(("name", "kind"), [("dora", "dora-rows"), ("lokr", "lokr")])
def test_a_recipe_trains_the_type_that_it_is_for(
    run_recipe: Callable[..., Path], name: str, kind: str
) -> None:
    assert read_adapter(run_recipe(name)).config.type == kind


def test_a_few_step_adapter_learns_from_a_teacher_and_is_validated(
    tmp_path: Path, few_step: ModelSource, small_model: Path, latents: Path, teacher: Path
) -> None:
    fixed = (
        f"model={few_step.folder}", f"data.root={latents}", f"distill.base={small_model}",
        f"distill.teacher={teacher}",
    )  # fmt: skip
    recipe = load_recipe("few_step", [*fixed, *_SIZES, "distill.seeds=1"])
    run = RunFolder.create("few", root=tmp_path)
    result = train(recipe, run=run, source=few_step, device="cpu")
    assert result.adapter_path is not None
    assert result.validation is not None
    assert set(result.validation.results) == {"validation", "train"}
    assert any(run.previews.glob("01-step-*.wav"))


def test_a_recipe_goes_on_from_an_adapter(
    run_recipe: Callable[..., Path], small_model: Path
) -> None:
    start = small_model / "adapter_lora.safetensors"
    config = read_adapter(start).config
    path = run_recipe(
        "continue_adapter",
        f"adapter={{from: {start}, r: {config.r}, lora_alpha: {config.alpha}}}",
    )
    assert read_adapter(path).content_hash != read_adapter(start).content_hash
    moved = [
        float((read_adapter(path).tensors[site]["lora_B"] - tensors["lora_B"]).abs().max())
        for site, tensors in read_adapter(start).tensors.items()
    ]
    assert 0 < max(moved) < 1e-4  # two warm-up steps at a low rate leave it nearly where it was
