from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sa3lora.pipeline import Guidance, GuidedVelocity, SA3Pipeline

FRAMES = 12


@pytest.fixture(scope="module")
def x(pipe: SA3Pipeline) -> Tensor:
    return torch.randn(
        2, pipe.config.latent_channels, FRAMES, generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture(scope="module")
def plain(pipe: SA3Pipeline) -> GuidedVelocity:
    conditioning = pipe.condition(["glass", "warm piano"], [0.3, 0.5])
    mask = torch.ones(2, FRAMES, dtype=torch.bool)
    return GuidedVelocity(pipe.denoiser, conditioning, None, Guidance(scale=1.0), mask)


def guided(plain: GuidedVelocity, **settings: float | tuple[float, float]) -> GuidedVelocity:
    return dataclasses.replace(plain, guidance=Guidance(**settings))  # type: ignore[arg-type]


T = torch.tensor([0.6, 0.6])


def test_scale_1_is_the_conditional_velocity(
    pipe: SA3Pipeline, plain: GuidedVelocity, x: Tensor
) -> None:
    with torch.no_grad():
        conditional = pipe.denoiser.velocity(x, T, plain.conditioning)
    assert torch.equal(plain(x, T), conditional)


def test_plain_guidance_is_linear_in_its_scale(plain: GuidedVelocity, x: Tensor) -> None:
    base, two, five = (guided(plain, scale=s, apg_scale=0.0)(x, T) for s in (1.0, 2.0, 5.0))
    assert_close(five - base, 4 * (two - base), atol=1e-4, rtol=1e-4)
    assert (two - base).abs().max() > 1e-4


def test_guidance_acts_in_its_interval_alone(plain: GuidedVelocity, x: Tensor) -> None:
    part = guided(plain, scale=4.0, interval=(0.5, 0.7))
    assert torch.equal(part(x, T), guided(plain, scale=4.0)(x, T))
    for t in (0.4, 0.8):
        level = torch.full((2,), t)
        assert torch.equal(part(x, level), plain(x, level))


def test_the_empty_negative_prompt_is_not_the_unconditional_one(
    pipe: SA3Pipeline, plain: GuidedVelocity, x: Tensor
) -> None:
    strong = guided(plain, scale=4.0)
    negative = pipe.condition(["noise", "noise"], [0.3, 0.5])
    away = dataclasses.replace(strong, negative=negative)
    assert (away(x, T) - strong(x, T)).abs().max() > 1e-4


def test_a_negative_prompt_keeps_the_duration_of_the_prompt(
    pipe: SA3Pipeline, plain: GuidedVelocity, x: Tensor
) -> None:
    def away(seconds: list[float]) -> Tensor:
        negative = pipe.condition(["noise", "noise"], seconds)
        with_tokens = dataclasses.replace(
            negative, cross=pipe.condition(["noise", "noise"], [0.3, 0.5]).cross
        )
        return dataclasses.replace(guided(plain, scale=4.0), negative=with_tokens)(x, T)

    assert torch.equal(away([0.3, 0.5]), away([0.9, 0.1]))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_padding_changes_nothing_with_guidance_too(
    pipe: SA3Pipeline, x: Tensor, scale: float
) -> None:
    mask = torch.arange(FRAMES) < torch.tensor([[7], [FRAMES]])
    conditioning = pipe.condition(["glass", "warm piano"], [0.3, 0.5])
    settings = Guidance(scale=scale, norm_threshold=0.5, apg_scale=0.5)
    batch = GuidedVelocity(pipe.denoiser, conditioning, None, settings, mask)
    alone = GuidedVelocity(
        pipe.denoiser, pipe.condition(["glass"], [0.3]), None, settings, mask[:1, :7]
    )
    noisy = torch.where(mask[:, None], x, 30.0)
    assert_close(batch(noisy, T)[:1, :, :7], alone(noisy[:1, :, :7], T[:1]), atol=2e-5, rtol=1e-4)


def test_given_frames_reach_both_halves(plain: GuidedVelocity, x: Tensor) -> None:
    keep = torch.zeros(2, FRAMES)
    keep[:, :5] = 1
    given = dataclasses.replace(guided(plain, scale=4.0), keep=keep, known=x * keep[:, None])
    assert (given(x, T) - guided(plain, scale=4.0)(x, T)).abs().max() > 1e-3
