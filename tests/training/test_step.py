from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Generator, Tensor

from sa3lora.flow import frame_mask
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.recipe import ObjectiveSection
from sa3lora.training.step import (
    StepLoss,
    broken_clips,
    extend_by_silence,
    fill_with_silence,
    flow_step_loss,
)

_LENGTHS = torch.tensor([6, 10])
_SILENCE = torch.arange(3.0).repeat(12, 1)


def _step(source: ModelSource, denoiser: Denoiser, text: list[Tensor]) -> StepLoss:
    return flow_step_loss(
        denoiser,
        torch.randn(2, 12, 10, generator=Generator().manual_seed(0)),
        mask=frame_mask(_LENGTHS, 10),
        seconds=_LENGTHS * 32 / 8000,
        text=text,
        objective=ObjectiveSection(silence_s=0.02),
        model_config=source.config,
        generator=Generator().manual_seed(5),
        silence=_SILENCE,
    )


def test_a_whole_model_and_its_text_embeddings_get_gradients(source: ModelSource) -> None:
    denoiser = source.load_denoiser().requires_grad_(True)
    text = [torch.randn(3, 24, requires_grad=True) for _ in range(2)]
    _step(source, denoiser, text).total.backward()
    assert all(float(each.grad.abs().sum()) > 0 for each in text if each.grad is not None)
    assert text[0].grad is not None
    gradients = [p.grad for p in denoiser.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)


def test_a_generator_in_the_same_state_gives_the_same_loss(source: ModelSource) -> None:
    denoiser = source.load_denoiser()
    text = [torch.ones(3, 24)] * 2
    assert torch.equal(_step(source, denoiser, text).total, _step(source, denoiser, text).total)


def test_silence_follows_each_clip_from_its_own_beginning() -> None:
    filled = fill_with_silence(
        torch.full((2, 12, 10), 9.0), _LENGTHS, silence=_SILENCE, num_frames=11
    )
    assert filled[0, 0].tolist() == [9.0] * 6 + [0.0, 1.0, 2.0, 0.0, 1.0]
    assert filled[1, 0].tolist() == [9.0] * 10 + [0.0]


def test_extension_never_goes_beyond_the_limit_and_keeps_the_clips(source: ModelSource) -> None:
    latents = torch.randn(2, 12, 10)
    extended, mask = extend_by_silence(
        latents,
        frame_mask(_LENGTHS, 10),
        silence=_SILENCE,
        mean_s=10.0,
        model_config=source.config,
        generator=Generator().manual_seed(0),
        max_frames=13,
    )
    assert mask.sum(dim=1).tolist() == [13, 13]
    assert torch.equal(extended[1, :, :10], latents[1])
    assert torch.equal(extended[0, :, :6], latents[0, :, :6])


def test_extension_has_the_wanted_mean(source: ModelSource) -> None:
    long = dataclasses.replace(source.config, sample_size=32 * 100_000)
    mask = torch.ones(2000, 1, dtype=torch.bool)
    _, extended = extend_by_silence(
        torch.zeros(2000, 1, 1),
        mask,
        silence=torch.zeros(1, 1),
        mean_s=0.4,
        model_config=long,
        generator=Generator().manual_seed(0),
    )
    # floor(e) of an exponential of mean m has mean 1 / (exp(1 / m) - 1); m = 0.4 * 8000 / 32
    assert float(extended.sum(dim=1).float().mean()) - 1 == pytest.approx(99.5, rel=0.08)


def test_no_silence_means_no_extension(source: ModelSource) -> None:
    latents, mask = torch.randn(2, 12, 10), frame_mask(_LENGTHS, 10)
    same, same_mask = extend_by_silence(
        latents,
        mask,
        silence=None,
        mean_s=4.0,
        model_config=source.config,
        generator=Generator(),
    )
    assert same is latents
    assert same_mask is mask


@pytest.mark.parametrize(
    ("per_item", "total", "expected"),
    [
        ([1.0, float("nan")], float("nan"), ["take2"]),
        ([1.0, 1.0], float("inf"), ["take1", "take2"]),
        ([1.0, 2.0], 1.5, []),
    ],
)
def test_clips_whose_loss_is_no_number_are_named(
    per_item: list[float], total: float, expected: list[str]
) -> None:
    loss = StepLoss(
        total=torch.tensor(total),
        signal=torch.tensor(0.0),
        context=torch.tensor(0.0),
        per_item=torch.tensor(per_item),
        t=torch.zeros(2),
        num_frames=1,
        num_slots=1,
    )
    assert broken_clips(loss, ["take1", "take2"]) == expected
