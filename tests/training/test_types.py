"""Every type through the real trainer: plan, steps, validation, resume and the finished file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sa3lora.adapters.config import ADAPTER_TYPES
from sa3lora.adapters.files import AdapterFile, read_adapter
from sa3lora.adapters.fold import AdapterStack
from sa3lora.adapters.sites import find_layers
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.processes import accelerated
from sa3lora.training.session import build_text, set_up
from sa3lora.training.trainer import train
from sa3lora.training.validation import Validator
from tests.training.killing import train_whole_and_killed

MakeRecipe = Callable[..., Recipe]
_FEW = ("train.max_steps=3", "validate={every: 3, tuples: 4}", "checkpoint.every=2")
TYPES = [f"adapter.type={name}" for name in (*ADAPTER_TYPES, "rslora")]
CHOICES = [*TYPES, "adapter.init=pissa"]


def _tensors(path: Path) -> dict[str, Tensor]:
    adapter = read_adapter(path)
    return {f"{s}.{n}": t for s, site in adapter.tensors.items() for n, t in site.items()}


@pytest.mark.parametrize("choice", CHOICES)
def test_any_type_trains_resumes_and_plays_what_was_validated(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe, choice: str
) -> None:
    recipe = make_recipe(*_FEW, choice, "adapter.lora_dropout=0.1")
    whole, result = train_whole_and_killed(recipe, root=tmp_path, source=source, step=3)
    assert result.validation is not None
    _assert_file_plays(recipe, source, whole, result.validation.main.adapter)


def _assert_file_plays(
    recipe: Recipe, source: ModelSource, run: RunFolder, expected: float
) -> None:
    """Fold the finished file into a fresh base: its loss on the probe is the validation's."""
    with accelerated("cpu") as accelerator:
        setup = set_up(recipe, source=source, accelerator=accelerator)
    text = build_text(setup)
    validator = Validator(recipe, data=setup.data, source=source, text=text)
    denoiser = source.load_denoiser()
    AdapterStack(denoiser).add(read_adapter(run.adapter_path), "a")
    folded = validator.run(denoiser, 3).main
    assert folded.adapter == pytest.approx(expected, rel=1e-5)
    _assert_released_tools_play_the_same(read_adapter(run.adapter_path), source)
    bare = validator.run(source.load_denoiser(), 3).main
    assert bare.adapter != pytest.approx(expected, rel=1e-5)


def _assert_released_tools_play_the_same(adapter: AdapterFile, source: ModelSource) -> None:
    """Compare the weights of both rules: at strength 1, and for plain types at any."""
    ours, theirs = source.load_denoiser(), source.load_denoiser()
    exact, official = AdapterStack(ours), AdapterStack(theirs, strength_rule="official")
    for strength in (1.0, 0.5, -1.5) if adapter.config.type.startswith("lora") else (1.0,):
        for stack in (exact, official):
            stack.clear()
            stack.add(adapter, "a", strength=strength)
        layers = find_layers(theirs)
        for site, layer in find_layers(ours).items():
            torch.testing.assert_close(layer.weight, layers[site].weight, rtol=1e-5, atol=1e-6)


def test_weight_decay_shrinks_no_magnitude(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> None:
    run = RunFolder.create("decay", root=tmp_path)
    recipe = make_recipe(
        *_FEW,
        "adapter.type=bora",
        "optim={lr: 1.0e-7, weight_decay: 1000000.0}",
        "validate.every=0",
    )
    train(recipe, run=run, source=source, device="cpu")
    trained = read_adapter(run.adapter_path)
    denoiser = source.load_denoiser()
    for site, tensors in trained.tensors.items():
        norms = denoiser.get_submodule(site).weight.detach().flatten(1).norm(dim=1)
        torch.testing.assert_close(tensors["magnitude_r"], norms, rtol=1e-4, atol=1e-5)
        fan_in = tensors["lora_A"].shape[1]
        assert tensors["lora_A"].abs().max() < 0.9 / fan_in**0.5  # while A does decay


def test_a_magnitude_adapter_goes_on_from_its_file(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> None:
    first = RunFolder.create("first", root=tmp_path)
    train(make_recipe(*_FEW, "adapter.type=dora"), run=first, source=source, device="cpu")
    again = RunFolder.create("again", root=tmp_path)
    recipe = make_recipe(
        *_FEW, "adapter.type=dora-rows", f"adapter.from={first.adapter_path}",
        "optim={lr: 1.0e-12, weight_decay: 0.0}",
    )  # fmt: skip
    train(recipe, run=again, source=source, device="cpu")
    old, new = _tensors(first.adapter_path), _tensors(again.adapter_path)
    for key, tensor in old.items():
        torch.testing.assert_close(new[key], tensor, rtol=1e-5, atol=1e-8)


def test_magnitudes_train_on_a_bfloat16_base(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> None:
    run = RunFolder.create("bfloat16", root=tmp_path)
    recipe = make_recipe(
        *_FEW, "adapter.type=bora", "train={max_steps: 3, base_dtype: bfloat16, dtype: bfloat16}"
    )
    result = train(recipe, run=run, source=source, device="cpu")
    assert result.validation is not None
    assert result.validation.main.difference < 0
