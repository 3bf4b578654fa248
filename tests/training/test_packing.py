"""A clip trains the same packed, padded and alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from sa3lora.adapters.files import read_adapter
from sa3lora.adapters.inject import adapter_parameters
from sa3lora.errors import RecipeError
from sa3lora.models.attention import choose_backend
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.probe import Draws, StepLoss
from sa3lora.recipe import ObjectiveSection, Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.packing import uses_packing
from sa3lora.training.processes import accelerated
from sa3lora.training.session import load_denoiser, set_up
from sa3lora.training.step import MicroBatch, loss_of_micro_batch, prepare_step
from sa3lora.training.trainer import train

MakeRecipe = Callable[..., Recipe]

_LENGTHS = (7, 20, 4, 12)
# Given frames too, so that both terms of the loss count.
_OBJECTIVE = ObjectiveSection(silence_s=0, inpaint=[0.5, 0.0, 0.5], prompt_dropout=0.5)
_TEXT = [torch.randn(n + 2, 24, generator=Generator().manual_seed(n)) for n in range(4)]


def _denoiser(recipe: Recipe, source: ModelSource) -> Denoiser:
    with accelerated("cpu") as accelerator:
        denoiser = load_denoiser(set_up(recipe, source=source, accelerator=accelerator))
    generator = Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in adapter_parameters(denoiser):
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return denoiser


def _together(source: ModelSource) -> MicroBatch:
    [batch] = prepare_step(
        [torch.randn(4, 12, 20, generator=Generator().manual_seed(1))],
        masks=[torch.arange(20) < torch.tensor(_LENGTHS)[:, None]],
        seconds=[torch.tensor(_LENGTHS) * 32 / 8000],
        objective=_OBJECTIVE,
        model_config=source.config,
        generators=[Generator().manual_seed(2)],
    )
    return batch


def _alone(batch: MicroBatch, row: int) -> MicroBatch:
    rows, frames = slice(row, row + 1), _LENGTHS[row]
    draws = batch.draws
    return MicroBatch(
        latents=batch.latents[rows, :, :frames],
        mask=batch.mask[rows, :frames],
        seconds=batch.seconds[rows],
        draws=Draws(
            t=draws.t[rows],
            noise=draws.noise[rows, :, :frames],
            keep=draws.keep[rows, :frames],
            dropped=draws.dropped[rows],
        ),
    )


def _measure(
    denoiser: Denoiser, batch: MicroBatch, text: list[Tensor], *, packed: bool
) -> tuple[StepLoss, dict[str, Tensor]]:
    loss = loss_of_micro_batch(denoiser, batch, text=text, objective=_OBJECTIVE, packed=packed)
    torch.autograd.backward(loss.total)
    gradients: dict[str, Tensor] = {}
    for name, parameter in adapter_parameters(denoiser):
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad
        parameter.grad = None
    return loss, gradients


@pytest.mark.parametrize("kind", ["lora", "dora-rows", "bora"])
@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_packed_padded_and_single_clips_have_one_loss_and_one_gradient(
    source: ModelSource, make_recipe: MakeRecipe, kind: str, checkpointing: str
) -> None:
    recipe = make_recipe(f"adapter.type={kind}", f"train.checkpointing={checkpointing}")
    denoiser = _denoiser(recipe, source)
    batch = _together(source)
    packed, packed_gradients = _measure(denoiser, batch, _TEXT, packed=True)
    padded, padded_gradients = _measure(denoiser, batch, _TEXT, packed=False)
    single = [
        _measure(denoiser, _alone(batch, row), _TEXT[row : row + 1], packed=False)
        for row in range(4)
    ]
    assert_close(packed.per_item, padded.per_item, rtol=1e-4, atol=1e-5)
    alone = torch.cat([loss.per_item for loss, _ in single])
    assert_close(packed.per_item, alone, rtol=1e-4, atol=1e-5)
    assert (packed.num_frames, packed.num_slots) == (43, 43)
    assert (padded.num_frames, padded.num_slots) == (43, 80)
    for name, gradient in packed_gradients.items():
        scale = float(gradient.abs().max()) + 1e-6
        mean = torch.stack([gradients[name] for _, gradients in single]).mean(dim=0)
        assert_close(gradient, padded_gradients[name], rtol=1e-3, atol=1e-3 * scale)
        assert_close(gradient, mean, rtol=1e-3, atol=1e-3 * scale)


def test_auto_packs_where_a_kernel_runs_and_the_recipe_may_say_otherwise(
    make_recipe: MakeRecipe,
) -> None:
    choose_backend.cache_clear()
    cpu = {"device": "cpu", "compute": torch.float32}
    assert not uses_packing(make_recipe(), **cpu)
    assert uses_packing(make_recipe("data.packing=true"), **cpu)
    assert not uses_packing(make_recipe("data.packing=false"), **cpu)


def test_what_is_neither_auto_nor_a_truth_is_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"data\.packing: must be auto, true or false, got 1"):
        make_recipe("data.packing=1")


def test_a_packed_run_trains_wastes_nothing_and_resumes_bit_for_bit(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe("data.packing=true", "train.grad_accum=2")
    whole = RunFolder.create("whole", root=tmp_path)
    train(recipe, run=whole, source=source, device="cpu")
    assert "packed end to end" in whole.manifest()["plan"]["batches"]
    fewer = recipe.train.model_copy(update={"max_steps": 4})
    short = recipe.model_copy(update={"train": fewer})
    part = RunFolder.create("part", root=tmp_path)
    train(short, run=part, source=source, device="cpu")
    train(recipe, run=part, source=source, device="cpu", resume=True)
    one, two = (read_adapter(run.adapter_path) for run in (whole, part))
    assert one.content_hash == two.content_hash
