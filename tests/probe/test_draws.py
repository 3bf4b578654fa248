from __future__ import annotations

import torch
from torch import Generator

from sa3lora.flow import frame_mask
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.probe import Draws, StepLoss, draw_step, loss_of_draws
from sa3lora.probe.draws import draw_timesteps, shift_options
from sa3lora.recipe import ObjectiveSection

_LENGTHS = torch.tensor([9, 14, 5])


def _latents() -> torch.Tensor:
    return torch.randn(3, 12, 14, generator=Generator().manual_seed(1))


def _draw(source: ModelSource, objective: ObjectiveSection, seed: int = 3) -> Draws:
    return draw_step(
        _latents(),
        frame_mask(_LENGTHS, 14),
        seconds=_LENGTHS * 32 / 8000,
        objective=objective,
        model_config=source.config,
        generator=Generator().manual_seed(seed),
    )


def _loss(denoiser: Denoiser, draws: Draws, rows: slice, frames: int) -> StepLoss:
    text = [torch.randn(n + 2, 24, generator=Generator().manual_seed(n)) for n in range(3)]
    return loss_of_draws(
        denoiser,
        _latents()[rows, :, :frames],
        mask=frame_mask(_LENGTHS, 14)[rows, :frames],
        seconds=(_LENGTHS * 32 / 8000)[rows],
        text=text[rows],
        draws=Draws(
            t=draws.t[rows],
            noise=draws.noise[rows, :, :frames],
            keep=draws.keep[rows, :frames],
            dropped=draws.dropped[rows],
        ),
        context_weight=1.0,
        normalisation="none",
    )


def test_a_clip_scores_the_same_alone_and_beside_a_longer_one(
    source: ModelSource, denoiser: Denoiser
) -> None:
    draws = _draw(source, ObjectiveSection(inpaint=[0.5, 0.0, 0.5]))
    together = _loss(denoiser, draws, slice(0, 3), 14).per_item
    for n, frames in enumerate(_LENGTHS.tolist()):
        alone = _loss(denoiser, draws, slice(n, n + 1), frames).per_item
        torch.testing.assert_close(alone[0], together[n], rtol=1e-5, atol=1e-6)


def test_the_same_seed_draws_the_same_and_another_one_does_not(source: ModelSource) -> None:
    objective = ObjectiveSection()
    first, again, other = (_draw(source, objective, seed) for seed in (3, 3, 4))
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.t, again.t)
    assert not torch.equal(first.t, other.t)


def test_coupling_only_reorders_the_noise(source: ModelSource) -> None:
    coupled = _draw(source, ObjectiveSection(coupling="exact")).noise
    plain = _draw(source, ObjectiveSection(coupling="none")).noise
    assert {float(row.sum()) for row in coupled} == {float(row.sum()) for row in plain}


def test_nothing_is_given_in_padding(source: ModelSource) -> None:
    keep = _draw(source, ObjectiveSection(inpaint=[0.0, 0.0, 1.0])).keep
    assert not keep[~frame_mask(_LENGTHS, 14)].any()


def test_a_dropped_prompt_does_not_reach_the_loss(source: ModelSource, denoiser: Denoiser) -> None:
    draws = _draw(source, ObjectiveSection(prompt_dropout=1.0))
    assert bool(draws.dropped.all())
    text = [torch.randn(4, 24) for _ in range(3)]
    losses = []
    for prompts in (text, [torch.zeros(1, 24)] * 3):
        loss = loss_of_draws(
            denoiser,
            _latents(),
            mask=frame_mask(_LENGTHS, 14),
            seconds=_LENGTHS * 32 / 8000,
            text=prompts,
            draws=draws,
            context_weight=1.0,
            normalisation="none",
        )
        losses.append(loss.total)
    assert torch.equal(losses[0], losses[1])


def test_the_model_s_shift_moves_time_towards_noise_and_none_leaves_it(
    source: ModelSource,
) -> None:
    seconds = torch.full((64,), 0.5)
    drawn = {
        name: draw_timesteps(
            seconds,
            objective=ObjectiveSection(shift=name),
            model_config=source.config,
            generator=Generator().manual_seed(0),
        )
        for name in ("model", "none")
    }
    assert bool((drawn["model"] > drawn["none"]).all())
    assert shift_options(ObjectiveSection(shift="flux"), source.config) == {"type": "flux"}
