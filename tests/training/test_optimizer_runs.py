"""Optimizers and averages through the real trainer: resume, the finished file, validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sa3lora.adapters.files import read_adapter
from sa3lora.adapters.fold import AdapterStack
from sa3lora.errors import RecipeError
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.processes import accelerated
from sa3lora.training.session import build_text, set_up
from sa3lora.training.trainer import train
from sa3lora.training.validation import Validator
from tests.training.killing import train_whole_and_killed

MakeRecipe = Callable[..., Recipe]
_DORA = "adapter={type: dora-rows, r: 4}"


def _tensors(path: Path) -> dict[str, Tensor]:
    adapter = read_adapter(path)
    return {f"{s}.{n}": t for s, site in adapter.tensors.items() for n, t in site.items()}


@pytest.mark.parametrize(
    "optim",
    [
        "optim={name: muon, lr: 0.01}",
        "optim={name: prodigy}",
        "optim={name: adamw8bit, lr: 0.01}",
        "optim={lr: 0.01, ema_decay: 0.9, lora_plus_ratio: 4, schedule: linear, min_lr: 0.001}",
    ],
)
def test_a_killed_run_ends_in_the_same_adapter(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe, optim: str
) -> None:
    recipe = make_recipe(_DORA, optim, "validate.every=0")
    train_whole_and_killed(recipe, root=tmp_path, source=source, step=5)


def test_the_average_is_written_and_validated_and_checkpoints_hold_both(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> None:
    plain = RunFolder.create("plain", root=tmp_path)
    train(make_recipe(_DORA), run=plain, source=source, device="cpu")
    run = RunFolder.create("average", root=tmp_path)
    recipe = make_recipe(_DORA, "optim.ema_decay=0.9")
    result = train(recipe, run=run, source=source, device="cpu")
    newest = run.checkpoints / "step-00000006"
    adapter = _tensors(run.adapter_path)
    averages = load_file(newest / "averages.safetensors")
    trained = load_file(newest / "parameters.safetensors")
    saved = _tensors(newest / "adapter.safetensors")
    assert all(torch.equal(adapter[key], saved[key]) for key in saved)
    for key, tensor in _tensors(plain.adapter_path).items():
        # Averaging watches and does not steer: the steps are those of a run without it.
        torch.testing.assert_close(trained[key].reshape(tensor.shape), tensor)
        torch.testing.assert_close(averages[key].reshape(tensor.shape), adapter[key])
    assert any(not torch.equal(averages[key], trained[key]) for key in trained)

    with accelerated("cpu") as accelerator:
        setup = set_up(recipe, source=source, accelerator=accelerator)
    validator = Validator(recipe, data=setup.data, source=source, text=build_text(setup))
    denoiser = source.load_denoiser()
    AdapterStack(denoiser).add(read_adapter(run.adapter_path), "a")
    assert result.validation is not None
    played = validator.run(denoiser, 6).main.adapter
    assert played == pytest.approx(result.validation.main.adapter, rel=1e-5)


def test_lora_plus_without_a_b_stops_before_anything_is_loaded(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> None:
    run = RunFolder.create("bad", root=tmp_path)
    recipe = make_recipe("adapter={type: lora-xs, r: 4}", "optim.lora_plus_ratio=16")
    with pytest.raises(RecipeError, match=r"adapter\.type=lora-xs has no B"):
        train(recipe, run=run, source=source, device="cpu")
    assert not run.path.exists()
