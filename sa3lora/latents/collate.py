"""Putting clips of unequal length into one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sa3lora.latents.format import Clip


@dataclass(frozen=True)
class Crop:
    """Frames `start` to `start + num_frames` of clip number `index`, and silence behind them."""

    index: int
    start: int
    num_frames: int
    silence_frames: int = 0

    @property
    def total_frames(self) -> int:
        """Frames with the silence."""
        return self.num_frames + self.silence_frames


@dataclass(frozen=True)
class Batch:
    """Latents (B, C, T), mask (B, T) True on real frames, seconds (B,) float32, and the texts.

    The silence of a crop counts as real: a model learns from it that music ends.

    `seconds` is the length of what is shown, of the crop where a clip was cropped, so that the
    length the model is told is the length it hears. The released reader tells the length of the
    whole file instead, of which a crop shows nothing.
    """

    latents: Tensor
    mask: Tensor
    seconds: Tensor
    clip_ids: list[str]
    captions: list[str]

    @property
    def padding_waste(self) -> float:
        """Share of frames that are padding, 0 to 1."""
        return 1.0 - float(self.mask.float().mean())

    def to(self, device: torch.device | str, *, dtype: torch.dtype | None = None) -> Batch:
        """Move the tensors.

        Args:
            device: Where to.
            dtype: Of the latents only; None keeps it. Seconds stay float32.

        Returns:
            A new batch.
        """
        return replace(
            self,
            latents=self.latents.to(device=device, dtype=dtype),
            mask=self.mask.to(device),
            seconds=self.seconds.to(device),
        )


def silence_frames(silence: Tensor, num_frames: int) -> Tensor:
    """Repeat encoded silence to a length.

    Args:
        silence: (C, T_s).
        num_frames: Frames wanted.

    Returns:
        (C, num_frames), from the start of `silence`.
    """
    repeats = -(-num_frames // silence.shape[1])
    return silence.repeat(1, max(repeats, 1))[:, :num_frames]


def collate(
    clips: Sequence[Clip],
    *,
    silence: Tensor,
    sample_rate: int,
    ratio: int,
    crops: Sequence[Crop] | None = None,
    extra_frames: int = 0,
) -> Batch:
    """Pad clips with encoded silence to one length.

    Args:
        clips: At least one.
        silence: The dataset's, (C, T_s).
        sample_rate: The dataset's.
        ratio: Samples of one latent frame.
        crops: Which frames of each clip to take; None takes all.
        extra_frames: Silent frames behind the longest clip, room for the silence extension.

    Returns:
        The batch; padded frames hold silence and have mask False.

    Raises:
        ValueError: If there are no clips, or not as many crops.
    """
    if not clips:
        raise ValueError("a batch needs at least one clip")
    if crops is None:
        crops = [Crop(n, 0, clip.num_frames) for n, clip in enumerate(clips)]
    if len(crops) != len(clips):
        raise ValueError(f"{len(clips)} clips need as many crops, got {len(crops)}")
    total = max(crop.total_frames for crop in crops) + extra_frames
    padding = silence_frames(silence, total)
    latents = padding.to(clips[0].latent.dtype).repeat(len(clips), 1, 1)
    mask = torch.zeros(len(clips), total, dtype=torch.bool)
    for row, (clip, crop) in enumerate(zip(clips, crops, strict=True)):
        # Silence goes on behind the clip from its own start, as if it had been encoded there.
        latents[row, :, crop.num_frames :] = padding[:, : total - crop.num_frames]
        stop = crop.start + crop.num_frames
        latents[row, :, : crop.num_frames] = clip.latent[:, crop.start : stop]
        mask[row, : crop.total_frames] = True
    pairs = zip(clips, crops, strict=True)
    seconds = [crop_seconds(clip, crop, frame_s=ratio / sample_rate) for clip, crop in pairs]
    return Batch(
        latents=latents,
        mask=mask,
        seconds=torch.tensor(seconds, dtype=torch.float32),
        clip_ids=[clip.clip_id for clip in clips],
        captions=[clip.caption for clip in clips],
    )


def crop_seconds(clip: Clip, crop: Crop, *, frame_s: float) -> float:
    """Tell how long a crop sounds.

    Args:
        clip: The clip.
        crop: Frames of it.
        frame_s: Seconds of one latent frame.

    Returns:
        Seconds; the last frame of a clip is often only partly filled and counts so.
    """
    return min(crop.num_frames * frame_s, clip.duration_s - crop.start * frame_s)
