"""A small recipe and its dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sa3lora.models.source import ModelSource, resolve_model
from sa3lora.recipe import Recipe, load_recipe

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
