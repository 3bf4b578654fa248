from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sa3lora.adapters.inject import adapter_parameters
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.training.data import TextEmbeddings
from sa3lora.training.drift import DriftProbe, drift_prompts
from sa3lora.training.processes import accelerated
from sa3lora.training.session import build_text, load_denoiser, set_up


@pytest.fixture
def parts(
    source: ModelSource, make_recipe: Callable[..., Recipe]
) -> tuple[Denoiser, TextEmbeddings]:
    with accelerated("cpu") as accelerator:
        setup = set_up(make_recipe(), source=source, accelerator=accelerator)
        return load_denoiser(setup), build_text(setup)


def test_drift_is_zero_for_a_fresh_adapter_and_grows_with_its_change(
    source: ModelSource, parts: tuple[Denoiser, TextEmbeddings]
) -> None:
    denoiser, text = parts
    probe = DriftProbe(source.config, text=text, prompts=drift_prompts()[:3])
    state = torch.get_rng_state()
    found = [probe.measure(denoiser)]
    for _ in range(2):
        with torch.no_grad():
            for name, parameter in adapter_parameters(denoiser):
                parameter.add_(0.02 if "lora_B" in name else 0.0)
        found.append(probe.measure(denoiser))
    assert found[0] == 0.0
    assert 0 < found[1] < found[2]
    assert torch.equal(torch.get_rng_state(), state)
    # The base's moments are its own, whatever the adapter was when they were made.
    late = DriftProbe(source.config, text=text, prompts=drift_prompts()[:3])
    assert late.measure(denoiser) == found[2]


def test_a_model_that_stands_still_has_drifted_by_all_of_its_energy(
    source: ModelSource, parts: tuple[Denoiser, TextEmbeddings], monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, text = parts
    probe = DriftProbe(source.config, text=text, prompts=drift_prompts()[:2])
    assert probe.measure(denoiser) == 0.0
    monkeypatch.setattr(
        denoiser, "velocity", lambda x, t, conditioning: torch.zeros_like(x), raising=True
    )
    assert probe.measure(denoiser) == 1.0


def test_the_neutral_prompts_are_many_and_different() -> None:
    prompts = drift_prompts()
    assert len(set(prompts)) == len(prompts) == 16
