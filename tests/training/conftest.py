"""A small recipe and its dataset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Generator

from sa3lora.models.source import ModelSource, resolve_model
from sa3lora.recipe import Recipe, load_recipe
from sa3lora.runs import RunFolder
from sa3lora.training.trainer import train

MakeRecipe = Callable[..., Recipe]

_RECIPE = """
data: {frames_per_batch: 120}
adapter: {r: 4}
objective: {silence_s: 0.02}
optim: {lr: 0.01}
train: {max_steps: 6}
validate: {every: 3, tuples: 6}
preview: {every: 0}
checkpoint: {every: 2, keep: 2}
"""


@pytest.fixture(scope="session")
def source(small_model: Path) -> ModelSource:
    return resolve_model(str(small_model))


@pytest.fixture
def latents(tmp_path: Path, make_latents: Callable[..., Path]) -> Path:
    return make_latents(tmp_path / "latents")


@pytest.fixture
def make_recipe(tmp_path: Path, latents: Path, small_model: Path) -> Callable[..., Recipe]:
    path = tmp_path / "recipe.yaml"
    path.write_text(_RECIPE, encoding="utf-8")

    def make(*overrides: str) -> Recipe:
        fixed = [f"model={small_model}", f"data.root={latents}"]
        return load_recipe(path, [*fixed, *overrides])

    return make


@pytest.fixture(scope="session")
def few_step(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> ModelSource:
    """A sibling of the small model: same latents and prompts, another transformer."""
    folder = tmp_path_factory.mktemp("models") / "quick"
    shutil.copytree(small_model, folder)
    config = json.loads((folder / "model_config.json").read_text())
    config["model"]["diffusion"]["diffusion_objective"] = "rf_denoiser"
    (folder / "model_config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    generator = Generator().manual_seed(0)
    for key, tensor in tensors.items():
        if key.startswith("model.") and key.endswith("weight"):
            noise = torch.randn(tensor.shape, generator=generator)
            tensors[key] = tensor + 0.02 * noise.to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors")
    return resolve_model(str(folder))


@pytest.fixture
def teacher(tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe) -> Path:
    run = RunFolder.create("teacher", root=tmp_path)
    train(
        make_recipe("train.max_steps=2", "validate.every=0"), run=run, source=source, device="cpu"
    )
    return run.adapter_path


@pytest.fixture
def make_student(
    make_recipe: MakeRecipe, few_step: ModelSource, small_model: Path, teacher: Path
) -> MakeRecipe:
    def make(*overrides: str) -> Recipe:
        fixed = (
            f"model={few_step.folder}", f"distill.base={small_model}",
            f"distill.teacher={teacher}", "distill.teacher_steps=3", "distill.seeds=2",
        )  # fmt: skip
        return make_recipe(*fixed, *overrides)

    return make
