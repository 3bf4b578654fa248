"""Checking and preparing what a caller gives to the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sa3lora.audio import resample, to_channels
from sa3lora.models.config import ModelConfig

#: Sound, (K, N) float32, and its rate in Hz.
AudioInput = tuple[Tensor, int]
#: Start and end in seconds.
Region = tuple[float, float]


@dataclass(frozen=True)
class Request:
    """A checked request: one entry a clip in every list."""

    prompts: list[str]
    negatives: list[str] | None
    durations_s: list[float]


def check_request(
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None,
    duration_s: float | Sequence[float],
) -> Request:
    """Spread prompts and durations over the batch.

    Raises:
        ValueError: If there is no prompt, or lists differ in length.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    many = [x for x in (negative_prompt, duration_s) if not isinstance(x, str | float | int | None)]
    size = max([len(prompts), *(len(x) for x in many)])
    prompts = prompts * size if len(prompts) == 1 else prompts
    durations = [float(duration_s)] * size if isinstance(duration_s, float | int) else [
        float(d) for d in duration_s
    ]  # fmt: skip
    negatives = [negative_prompt] * size if isinstance(negative_prompt, str) else (
        None if negative_prompt is None else list(negative_prompt)
    )  # fmt: skip
    lengths = {"prompts": len(prompts), "durations": len(durations)}
    if negatives is not None:
        lengths["negative prompts"] = len(negatives)
    if size == 0 or set(lengths.values()) != {size}:
        told = ", ".join(f"{n} {name}" for name, n in lengths.items())
        raise ValueError(f"give one of each or equally many, got {told}")
    return Request(prompts, negatives, durations)


def check_regions(
    regions: Sequence[Region], *, duration_s: float, audio_s: float | None
) -> list[Region]:
    """Check the regions to make anew.

    Raises:
        ValueError: If a region is empty or reaches beyond the clip, or if no audio is given.
    """
    if audio_s is None:
        raise ValueError("regions need the audio that they are part of: give inpaint_audio")
    for start, end in regions:
        if not 0 <= start < end:
            raise ValueError(f"a region needs 0 <= start < end, got {start:g} to {end:g} s")
        if end > duration_s + 1e-6:
            raise ValueError(
                f"region {start:g} to {end:g} s reaches beyond the duration of {duration_s:g} s"
            )
    covered = sorted(regions)
    end = audio_s
    for start, stop in covered:
        if start <= end + 1e-6:
            end = max(end, stop)
    if end + 1e-6 < duration_s:
        raise ValueError(
            f"the audio ends at {audio_s:g} s and no region covers {end:g} to {duration_s:g} s: "
            f"add a region to {duration_s:g} or ask for a shorter duration"
        )
    return list(regions)


def fit_audio(audio: AudioInput, config: ModelConfig, *, num_samples: int) -> Tensor:
    """Bring sound to the model's rate, channels and length, (1, K, num_samples).

    Longer sound is cut, shorter is followed by silence.

    Raises:
        ValueError: If the sound is not (K, N), is empty or holds values that are not finite.
    """
    wave, rate = audio
    if wave.ndim != 2 or wave.shape[1] == 0:
        raise ValueError(f"audio must be (channels, samples), got {tuple(wave.shape)}")
    if not torch.isfinite(wave).all():
        raise ValueError("audio holds values that are not finite")
    wave = to_channels(wave.float(), config.same.audio_channels)
    if rate != config.sample_rate:
        wave = resample(wave, rate, config.sample_rate)
    wave = wave[:, :num_samples]
    return F.pad(wave, (0, num_samples - wave.shape[1]))[None]
