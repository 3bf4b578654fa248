"""Every key of the recipe's `objective` section reaches the law that it names."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from sa3lora.flow import (
    NORMALISATIONS,
    TIMESTEP_LAWS,
    effective_length,
    flow_loss,
    frame_mask,
    sample_timesteps,
    shift,
)
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.probe import Draws, StepLoss, draw_step, loss_of_draws, predict_velocity
from sa3lora.recipe import ObjectiveSection

_LENGTHS = torch.tensor([9, 14, 5, 14])
_SECONDS = _LENGTHS * 32 / 8000
_MASK = frame_mask(_LENGTHS, 14)
_LATENTS = torch.randn(4, 12, 14, generator=Generator().manual_seed(1))
_TEXT = [torch.randn(n + 2, 24, generator=Generator().manual_seed(n)) for n in range(4)]


def _draw(source: ModelSource, **keys: object) -> Draws:
    return draw_step(
        _LATENTS,
        _MASK,
        seconds=_SECONDS,
        objective=ObjectiveSection.model_validate(keys),
        model_config=source.config,
        generator=Generator().manual_seed(3),
    )


def _loss(
    denoiser: Denoiser, draws: Draws, *, seconds: Tensor = _SECONDS, **keys: object
) -> StepLoss:
    objective = ObjectiveSection.model_validate(keys)
    return loss_of_draws(
        denoiser,
        _LATENTS,
        mask=_MASK,
        seconds=seconds,
        text=_TEXT,
        draws=draws,
        context_weight=objective.context_weight,
        normalisation=objective.normalisation,
        min_snr_gamma=objective.min_snr_gamma,
    )


def test_the_defaults_are_those_of_the_released_trainer() -> None:
    # spec 2.2 to 2.8; what the released trainer does not have is off
    assert ObjectiveSection().model_dump() == {
        "timesteps": "trunc_logit_normal",
        "shift": "model",
        "coupling": "sinkhorn",
        "inpaint": [0.1, 0.8, 0.1],
        "silence_s": 4.0,
        "prompt_dropout": 0.1,
        "context_weight": 1.0,
        "normalisation": "none",
        "min_snr_gamma": None,
        "prior_weight": 0.0,
        "prior_prompts": None,
    }


@pytest.mark.parametrize("law", TIMESTEP_LAWS)
def test_timesteps_names_the_law_of_time(source: ModelSource, law: str) -> None:
    expected = sample_timesteps(law, 4, generator=Generator().manual_seed(3))
    assert torch.equal(_draw(source, timesteps=law, shift="none").t, expected)


@pytest.mark.parametrize("kind", ["full", "flux", "logsnr"])
def test_shift_warps_time_by_the_effective_length_of_each_clip(
    source: ModelSource, kind: str
) -> None:
    plain = _draw(source, shift="none").t
    length = effective_length(_SECONDS, sample_rate=8000, ratio=32)
    assert length.tolist() == _LENGTHS.tolist()
    expected = shift(plain, length, options={"type": kind})
    assert torch.equal(_draw(source, shift=kind).t, expected)


def test_inpaint_names_the_shares_of_what_is_given(source: ModelSource) -> None:
    assert not _draw(source, inpaint=[0.0, 1.0, 0.0]).keep.any(), "full gives nothing"
    causal = _draw(source, inpaint=[0.0, 0.0, 1.0]).keep
    assert causal.any()
    assert torch.equal(causal, frame_mask(causal.sum(dim=1), 14)), "causal gives a beginning"
    assert not (causal & ~_MASK).any()


@pytest.mark.parametrize(("probability", "count"), [(0.0, 0), (1.0, 4)])
def test_prompt_dropout_is_the_share_of_prompts_that_are_lost(
    source: ModelSource, probability: float, count: int
) -> None:
    assert int(_draw(source, prompt_dropout=probability).dropped.sum()) == count


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_context_weight_weighs_the_given_frames(
    source: ModelSource, denoiser: Denoiser, weight: float
) -> None:
    draws = _draw(source, inpaint=[0.5, 0.0, 0.5])
    loss = _loss(denoiser, draws, context_weight=weight)
    assert float(loss.context) > 0
    torch.testing.assert_close(loss.total, loss.signal + weight * loss.context)


@pytest.mark.parametrize("mode", NORMALISATIONS)
@torch.no_grad()
def test_normalisation_names_what_the_error_is_divided_by(
    source: ModelSource, denoiser: Denoiser, mode: str
) -> None:
    draws = _draw(source)
    predicted = predict_velocity(
        denoiser, _LATENTS, mask=_MASK, seconds=_SECONDS, text=_TEXT, draws=draws
    )
    target = draws.noise - _LATENTS
    expected = flow_loss(predicted, target, _MASK, draws.keep, normalisation=mode)
    assert torch.equal(_loss(denoiser, draws, normalisation=mode).total, expected.total)


def test_the_model_is_told_how_long_each_clip_is(source: ModelSource, denoiser: Denoiser) -> None:
    draws = _draw(source)
    longer = _SECONDS.clone()
    longer[1] = 20.0
    told = _loss(denoiser, draws, seconds=longer).per_item != _loss(denoiser, draws).per_item
    assert told.tolist() == [False, True, False, False]
