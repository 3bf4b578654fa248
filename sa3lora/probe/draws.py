"""What is random in the objective, drawn apart from the loss that is computed from it.

Training draws anew at every step; a probe keeps its draws, so that two models are compared on the
very same numbers. Every number comes from one generator on the CPU: a run then draws the same on
every device, and resumes from the generator's state alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from sa3lora.flow import (
    couple_across,
    effective_length,
    flow_loss,
    interpolate,
    min_snr_weight,
    sample_dropout,
    sample_keep_mask,
    sample_timesteps,
    shift,
    velocity_target,
)
from sa3lora.models.config import ModelConfig
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.upload import upload
from sa3lora.recipe import ObjectiveSection


@dataclass(frozen=True)
class StepLoss:
    """Loss of a micro-batch and what is worth logging about it.

    Attributes:
        total: Scalar with gradient: signal term plus weighted context term, weighted by noise
            level where the recipe asks for it, plus the prior term if there is one.
        signal: Mean over clips of the error on frames to generate, detached, never weighted.
        context: Mean over clips of the error on given frames, detached, never weighted.
        per_item: Both terms of each clip, (B,), detached, never weighted by noise level.
        t: Noise level of each clip after the shift, (B,), float32.
        num_frames: Real frames in the batch, silence extension included.
        num_slots: Frames that the batch occupies, padding included.
        prior: Distance from the base on neutral prompts, detached; None if it is not trained on.
    """

    total: Tensor
    signal: Tensor
    context: Tensor
    per_item: Tensor
    t: Tensor
    num_frames: int
    num_slots: int
    prior: Tensor | None = None


@dataclass(frozen=True)
class Draws:
    """The random part of a step: what validation fixes and training draws anew.

    Attributes:
        t: Noise level of each clip after the shift, (B,), float32.
        noise: Gaussian noise, (B, C, T), already coupled to the clips.
        keep: True on frames that are given to the model, (B, T).
        dropped: True for clips that lose their prompt, (B,); best on the host, where it is read
            without waiting for a GPU.
    """

    t: Tensor
    noise: Tensor
    keep: Tensor
    dropped: Tensor


def draw_step(
    latents: Tensor,
    mask: Tensor,
    *,
    seconds: Tensor,
    objective: ObjectiveSection,
    model_config: ModelConfig,
    generator: Generator,
) -> Draws:
    """Draw time, coupled noise, keep-mask and prompt dropout of a batch, in this order."""
    draws = draw_uncoupled(
        latents,
        mask,
        seconds=seconds,
        objective=objective,
        model_config=model_config,
        generator=generator,
    )
    return couple_draws([draws], [latents], masks=[mask], method=objective.coupling)[0]


def draw_uncoupled(
    latents: Tensor,
    mask: Tensor,
    *,
    seconds: Tensor,
    objective: ObjectiveSection,
    model_config: ModelConfig,
    generator: Generator,
    noise_frames: int | None = None,
) -> Draws:
    """Draw as `draw_step` does, but leave each noise with its own clip.

    `noise_frames` makes the noise longer than the batch, so that it can go to a longer clip.
    """
    device = latents.device
    t = draw_timesteps(
        seconds, objective=objective, model_config=model_config, generator=generator
    ).to(device)
    shape = (*latents.shape[:2], noise_frames or latents.shape[2])
    noise = torch.randn(shape, generator=generator, dtype=torch.float32).to(device)
    keep = sample_keep_mask(
        mask.sum(dim=1).cpu(),
        mask.shape[1],
        probabilities=objective.inpaint,
        generator=generator,
    )
    dropped = sample_dropout(
        len(latents), probability=objective.prompt_dropout, generator=generator
    )
    return Draws(t=t, noise=noise, keep=keep.to(device), dropped=dropped)


def couple_draws(
    draws: Sequence[Draws], latents: Sequence[Tensor], *, masks: Sequence[Tensor], method: str
) -> list[Draws]:
    """Couple the noise of all micro-batches of a step at once; draws nothing."""
    noise = couple_across(
        [each.float() for each in latents],
        [each.noise for each in draws],
        method=method,
        masks=masks,
    )
    return [replace(each, noise=part) for each, part in zip(draws, noise, strict=True)]


def draw_timesteps(
    seconds: Tensor,
    *,
    objective: ObjectiveSection,
    model_config: ModelConfig,
    generator: Generator,
) -> Tensor:
    """Draw one noise level a clip and warp it by the clip's effective length, (B,) float32."""
    t = sample_timesteps(objective.timesteps, len(seconds), generator=generator)
    length = effective_length(
        seconds.cpu(),
        sample_rate=model_config.sample_rate,
        ratio=model_config.downsampling_ratio,
    )
    return shift(t, length, options=shift_options(objective, model_config))


def shift_options(objective: ObjectiveSection, model_config: ModelConfig) -> dict[str, Any] | None:
    """Return the options of the training shift, or None for no shift.

    `model` means what the model's own configuration trains with; a type's name means that type
    with its default options.
    """
    if objective.shift == "model":
        return model_config.training_shift
    return None if objective.shift == "none" else {"type": objective.shift}


def loss_of_draws(
    denoiser: Denoiser,
    latents: Tensor,
    *,
    mask: Tensor,
    seconds: Tensor,
    text: Sequence[Tensor],
    draws: Draws,
    context_weight: float,
    normalisation: str,
    min_snr_gamma: float | None = None,
    packed: bool = False,
) -> StepLoss:
    """Predict the velocity for fixed draws and score it; frames outside `mask` are absent.

    The mask is best on the host, where it is read without waiting for a GPU.
    """
    predicted = predict_velocity(
        denoiser, latents, mask=mask, seconds=seconds, text=text, draws=draws, packed=packed
    )
    loss = flow_loss(
        predicted,
        velocity_target(latents.float(), draws.noise),
        upload(mask, latents.device),
        draws.keep,
        context_weight=context_weight,
        normalisation=normalisation,
    )
    total = loss.total
    if min_snr_gamma is not None:
        total = (min_snr_weight(draws.t, min_snr_gamma) * loss.per_item).mean()
    num_frames = int(mask.sum())
    return StepLoss(
        total=total,
        signal=loss.signal.detach(),
        context=loss.context.detach(),
        per_item=loss.per_item.detach(),
        t=draws.t,
        num_frames=num_frames,
        num_slots=num_frames if packed else mask.numel(),
    )


def predict_velocity(
    denoiser: Denoiser,
    latents: Tensor,
    *,
    mask: Tensor,
    seconds: Tensor,
    text: Sequence[Tensor],
    draws: Draws,
    packed: bool = False,
) -> Tensor:
    """Predict the velocity of clips at their drawn noise, (B, C, T), float32.

    `packed` computes nothing for padding; it needs a mask that is a prefix of every row.
    """
    data = latents.float()
    conditioning = denoiser.condition(list(text), seconds.float())
    if bool(draws.dropped.any()):
        conditioning = conditioning.dropped(upload(draws.dropped, latents.device))
    predicted = denoiser.velocity(
        interpolate(data, draws.noise, draws.t),
        draws.t,
        conditioning,
        keep=draws.keep,
        known=data * draws.keep[:, None, :],
        mask=mask if packed or not bool(mask.all()) else None,
        packed=packed,
    )
    return predicted.float()
