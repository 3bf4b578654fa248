from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sa3lora.adapters.inject import adapter_parameters
from sa3lora.models.source import ModelSource
from sa3lora.probe import ProbeSet
from sa3lora.recipe import Recipe
from sa3lora.training.processes import accelerated
from sa3lora.training.session import build_text, load_denoiser, set_up
from sa3lora.training.validation import VALIDATION, Validator, evaluating, without_adapters


def test_a_fresh_adapter_makes_no_difference_and_a_changed_one_does(
    source: ModelSource, make_recipe: Callable[..., Recipe]
) -> None:
    recipe = make_recipe("adapter.lora_dropout=0.5")
    with accelerated("cpu") as accelerator:
        setup = set_up(recipe, source=source, accelerator=accelerator)
        text, denoiser = build_text(setup), load_denoiser(setup)
    validator = Validator(recipe, data=setup.data, source=source, text=text)
    assert validator.run(denoiser, 0).main.difference == 0.0
    with torch.no_grad():
        for _, parameter in adapter_parameters(denoiser):
            parameter.add_(0.05)
    changed = validator.run(denoiser, 1)
    assert changed.main.difference != 0.0
    assert changed.main is changed.results[VALIDATION]

    # The base's losses, kept from the first time, are those of a model without any adapter.
    plain = source.load_denoiser()
    probe = ProbeSet.build(
        setup.data.train,
        6,
        seed=4321,
        objective=recipe.objective,
        model_config=source.config,
        max_frames=setup.data.max_frames,
        frames_per_batch=recipe.data.frames_per_batch,
    )
    with without_adapters(denoiser):
        rested = probe.losses(denoiser, text)
    assert torch.equal(rested, probe.losses(plain, text))
    assert all(parameter.requires_grad for _, parameter in adapter_parameters(denoiser))


def test_evaluating_puts_every_module_back_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(1, 1)).eval()
    model[0].train()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [False, True, False]
