"""Whatever a run minimises, only the adapter's own tensors change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sa3lora.adapters.inject import adapter_parameters
from sa3lora.models.checkpoint import hash_tensors
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.distillation import make_objective
from sa3lora.training.processes import accelerated
from sa3lora.training.session import build_text, load_denoiser, make_loop, set_up
from sa3lora.training.stepper import Stepper
from sa3lora.training.teacher import make_pairs
from sa3lora.training.trainer import train

_PATHS = {
    "released objective": [],
    "coupling across a step": ["train.grad_accum=3", "objective.coupling=exact"],
    "weights and prior": ["objective.min_snr_gamma=5", "objective.prior_weight=1"],
    "packed": ["data.packing=true", "train.checkpointing=true", "objective.prior_weight=1"],
    "magnitudes": ["adapter.type=bora", "data.packing=true"],
    "teacher": ["distill.seeds=1", "distill.teacher_steps=1"],
}


def _frozen(denoiser: Denoiser) -> dict[str, Tensor]:
    ours = {id(parameter) for _, parameter in adapter_parameters(denoiser)}
    named = [*denoiser.named_parameters(), *denoiser.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named if id(tensor) not in ours}


@pytest.mark.parametrize("path", list(_PATHS))
def test_the_base_has_the_same_checksum_after_training(
    tmp_path: Path,
    source: ModelSource,
    small_model: Path,
    make_recipe: Callable[..., Recipe],
    path: str,
) -> None:
    overrides = list(_PATHS[path])
    if path == "teacher":
        run = RunFolder.create("teacher", root=tmp_path)
        short = make_recipe("train.max_steps=1", "validate.every=0")
        train(short, run=run, source=source, device="cpu")
        overrides += [f"distill.teacher={run.adapter_path}", f"distill.base={small_model}"]
    with accelerated("cpu") as accelerator:
        setup = set_up(make_recipe(*overrides), source=source, accelerator=accelerator)
        text = build_text(setup)
        if path == "teacher":
            make_pairs(setup, text, tmp_path / "pairs", tell=lambda _: None)
        denoiser = load_denoiser(setup)
        loop = make_loop(setup, denoiser, folder=tmp_path / "checkpoints")
        objective = make_objective(
            setup,
            denoiser=denoiser,
            text=text,
            teacher_folder=tmp_path / "pairs",
        )
        stepper = Stepper(setup, objective=objective, loop=loop)
        before = _frozen(denoiser)
        trained = {name: p.detach().clone() for name, p in adapter_parameters(denoiser)}
        for _ in range(2):
            stepper.take()
            list(stepper.finished())
        after = _frozen(denoiser)
        moved = [n for n, p in adapter_parameters(denoiser) if not torch.equal(p, trained[n])]
    assert hash_tensors(before.items()) == hash_tensors(after.items())
    assert moved, "the adapter did train"
