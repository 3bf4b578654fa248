"""One generation, from noise to sound, with the random draws in the official order."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from sa3lora.adapters.fold import AdapterStack
from sa3lora.flow.inpaint import regions_to_latent_mask
from sa3lora.flow.samplers import SAMPLERS, SamplerStep, sample
from sa3lora.flow.schedules import make_schedule
from sa3lora.flow.shifts import SAMPLING_DEFAULT
from sa3lora.models import Conditioning, Denoiser, SameAutoencoder
from sa3lora.models.blocks import decode_latents, encode_audio
from sa3lora.models.config import ModelConfig
from sa3lora.pipeline.guided import Guidance, GuidedVelocity
from sa3lora.pipeline.inputs import AudioInput, Region, Request, check_regions, fit_audio
from sa3lora.pipeline.lengths import Lengths, plan_lengths

Velocity = Callable[[Tensor, Tensor], Tensor]

BASE_STEPS, BASE_GUIDANCE, BASE_SAMPLER = 50, 7.0, "euler"
FEW_STEPS, FEW_GUIDANCE, FEW_SAMPLER = 8, 1.0, "pingpong"


class Parts(Protocol):
    """What a generation needs of the pipeline."""

    config: ModelConfig
    device: str
    denoiser: Denoiser
    stack: AdapterStack

    @property
    def autoencoder(self) -> SameAutoencoder:
        """The SAME autoencoder."""
        ...

    def condition(self, prompts: Sequence[str], durations_s: Sequence[float]) -> Conditioning:
        """Embed prompts and durations."""
        ...


@dataclass(frozen=True)
class Settings:
    """How to generate; None means the model's default. See `SA3Pipeline.__call__`."""

    guidance: Guidance
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    seed: int | None = None
    init_audio: AudioInput | None = None
    init_noise_level: float = 0.9
    inpaint_audio: AudioInput | None = None
    inpaint_regions: tuple[Region, ...] = ()
    headroom_s: float = 0.0
    official_blocks: bool = False


@dataclass(frozen=True)
class GenerationOutput:
    """What a call of the pipeline made.

    Attributes:
        audio: One (K, N) float32 tensor in [-1, 1] a clip, each of its own duration, on the CPU.
        sample_rate: Hz.
        seed: The seed that was used; give it again for the same sound.
        latents: What was decoded, (B, C, T), with the frames after the end.
        padded: All clips at the computed length, (B, K, N), before each is cut.
    """

    audio: list[Tensor]
    sample_rate: int
    seed: int
    latents: Tensor
    padded: Tensor


def complete_settings(settings: Settings, config: ModelConfig) -> Settings:
    """Fill in the model's defaults, as the official interface has them.

    Raises:
        ValueError: If a number is out of range or the sampler unknown.
    """
    few = config.is_post_trained
    scale = settings.guidance_scale
    if scale is None:
        scale = settings.guidance.scale
    if scale is None:
        scale = FEW_GUIDANCE if few else BASE_GUIDANCE
    steps = settings.steps if settings.steps is not None else FEW_STEPS if few else BASE_STEPS
    sampler = settings.sampler or (FEW_SAMPLER if few else BASE_SAMPLER)
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {steps}")
    if not 0 <= settings.init_noise_level <= 1:
        raise ValueError(f"init_noise_level must lie in [0, 1], got {settings.init_noise_level:g}")
    if not math.isfinite(scale):
        raise ValueError(f"guidance_scale must be finite, got {scale}")
    for name in ("apg_scale", "norm_threshold", "rescale"):
        value = getattr(settings.guidance, name)
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    low, high = settings.guidance.interval
    if not low <= high:
        raise ValueError(f"the guidance interval must be in order, got {low:g} to {high:g}")
    seed = random.SystemRandom().randrange(2**31) if settings.seed is None else settings.seed
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in [0, 2**63), got {seed}")
    return replace(
        settings, steps=steps, sampler=sampler, seed=seed,
        guidance=replace(settings.guidance, scale=scale),
    )  # fmt: skip


def generate(
    parts: Parts,
    request: Request,
    settings: Settings,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> GenerationOutput:
    """Generate a batch; `settings` come from `complete_settings`."""
    steps, seed, sampler = settings.steps, settings.seed, settings.sampler
    assert steps is not None, "complete_settings was not called"
    assert seed is not None
    assert sampler is not None
    lengths = plan_lengths(request.durations_s, parts.config, headroom_s=settings.headroom_s)
    keep = _keep(settings, lengths, parts)
    generator = torch.Generator(parts.device).manual_seed(seed)
    shape = (len(request.prompts), parts.config.latent_channels, lengths.num_frames)
    noise = torch.randn(shape, generator=generator, device=parts.device)
    velocity = _velocity(parts, request, settings, lengths)
    start, level = noise, 1.0
    if settings.init_audio is not None:
        level = settings.init_noise_level
        z = _encode(parts, settings.init_audio, lengths, generator, settings.official_blocks)
        start = z * (1 - level) + noise * level
    if keep is not None and settings.inpaint_audio is not None:
        z = _encode(parts, settings.inpaint_audio, lengths, generator, settings.official_blocks)
        keep = keep.expand(shape[0], -1)
        velocity = replace(velocity, keep=keep, known=z.expand(shape) * keep[:, None])
    schedule = make_schedule(
        steps, length=lengths.effective, sigma_max=level,
        options=parts.config.sampling_shift or SAMPLING_DEFAULT,
    )  # fmt: skip

    def report(step: SamplerStep) -> None:
        if progress is not None:
            progress(step.i + 1, steps)

    with _in_intervals(parts.stack, velocity) as limited:
        latents = sample(
            limited, start, schedule=schedule.to(parts.device), sampler=sampler,
            generator=generator, callback=report,
        )  # fmt: skip
    padded = _decode(parts, latents, lengths, generator, settings.official_blocks)
    rate = parts.config.sample_rate
    audio = [padded[i, :, : lengths.cut(i, rate)] for i in range(shape[0])]
    return GenerationOutput(audio, rate, seed, latents.cpu(), padded)


@contextmanager
def _in_intervals(stack: AdapterStack, velocity: GuidedVelocity) -> Iterator[Velocity]:
    """Let adapters act at their noise levels only while this lasts; all act again afterwards."""
    if not stack.has_intervals:
        yield velocity
        return

    def limited(x: Tensor, t: Tensor) -> Tensor:
        stack.at_noise_level(float(t[0]))  # clips of a batch share one schedule
        return velocity(x, t)

    try:
        yield limited
    finally:
        stack.at_noise_level(None)


def _velocity(
    parts: Parts, request: Request, settings: Settings, lengths: Lengths
) -> GuidedVelocity:
    conditioning = parts.condition(request.prompts, request.durations_s)
    negative = None
    if request.negatives is not None:
        negative = parts.condition(request.negatives, request.durations_s)
    mask = lengths.mask.to(parts.device)
    return GuidedVelocity(parts.denoiser, conditioning, negative, settings.guidance, mask)


def _keep(settings: Settings, lengths: Lengths, parts: Parts) -> Tensor | None:
    """Mask of given frames, (1, T), or None when everything is made."""
    audio, regions = settings.inpaint_audio, settings.inpaint_regions
    if audio is None and not regions:
        return None
    if not regions:
        raise ValueError("inpaint_audio has no effect without inpaint_regions: name a region")
    duration_s = max(lengths.durations_s)
    audio_s = None if audio is None else audio[0].shape[-1] / audio[1]
    keep = regions_to_latent_mask(
        check_regions(regions, duration_s=duration_s, audio_s=audio_s),
        num_samples=lengths.num_samples, sample_rate=parts.config.sample_rate,
        ratio=parts.config.downsampling_ratio, duration_s=duration_s,
    )  # fmt: skip
    return keep[None].to(parts.device)


def _encode(
    parts: Parts, audio: AudioInput, lengths: Lengths, generator: torch.Generator, official: bool
) -> Tensor:
    wave = fit_audio(audio, parts.config, num_samples=lengths.num_samples).to(parts.device)
    z = encode_audio(parts.autoencoder, wave, official=official, generator=generator)
    return z.float()


def _decode(
    parts: Parts, latents: Tensor, lengths: Lengths, generator: torch.Generator, official: bool
) -> Tensor:
    audio = decode_latents(parts.autoencoder, latents, official=official, generator=generator)
    real = lengths.mask.to(audio.device).repeat_interleave(parts.config.downsampling_ratio, 1)
    return (audio * real[:, None]).float().clamp(-1, 1).cpu()
