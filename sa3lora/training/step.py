"""The loss of one training micro-batch: silence extension, fresh draws, the released objective.

Nothing here knows about adapters, caches or devices' settings: the same function trains a whole
denoiser from nothing (text embeddings may carry gradients) or a LoRA adapter on a frozen one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from sa3lora.flow import extend_mask, frame_mask
from sa3lora.models.config import ModelConfig
from sa3lora.models.denoiser import Denoiser
from sa3lora.probe.draws import StepLoss, draw_step, loss_of_draws
from sa3lora.recipe import ObjectiveSection

__all__ = [
    "StepLoss",
    "broken_clips",
    "extend_by_silence",
    "fill_with_silence",
    "flow_step_loss",
]


def flow_step_loss(
    denoiser: Denoiser,
    latents: Tensor,
    *,
    mask: Tensor,
    seconds: Tensor,
    text: Sequence[Tensor],
    objective: ObjectiveSection,
    model_config: ModelConfig,
    generator: Generator,
    silence: Tensor | None = None,
    max_frames: int | None = None,
) -> StepLoss:
    """Draw time, noise and masks for a batch and return the released objective's loss.

    Args:
        denoiser: Model under training, whole or with adapters.
        latents: Clips, (B, C, T), on the denoiser's device.
        mask: True on real frames, a prefix of each row, (B, T).
        seconds: `seconds_total` of each clip, (B,), float32.
        text: Token embeddings of each prompt, (L_i, D); they may require gradients.
        objective: The recipe's `objective` section.
        model_config: Gives the latent rate, the longest length and the training shift.
        generator: CPU generator of every draw.
        silence: Latents of silence, (C, T_s). Without it clips are not extended by silence beyond
            their padding, and padding keeps whatever `latents` holds there.
        max_frames: Longest clip after the extension; None takes the model's own limit.

    Returns:
        The loss with its terms; its `total` carries the gradient.
    """
    latents, mask = extend_by_silence(
        latents,
        mask,
        silence=silence,
        mean_s=objective.silence_s,
        model_config=model_config,
        generator=generator,
        max_frames=max_frames,
    )
    draws = draw_step(
        latents,
        mask,
        seconds=seconds,
        objective=objective,
        model_config=model_config,
        generator=generator,
    )
    return loss_of_draws(
        denoiser,
        latents,
        mask=mask,
        seconds=seconds,
        text=text,
        draws=draws,
        context_weight=objective.context_weight,
        normalisation=objective.normalisation,
    )


def extend_by_silence(
    latents: Tensor,
    mask: Tensor,
    *,
    silence: Tensor | None,
    mean_s: float,
    model_config: ModelConfig,
    generator: Generator,
    max_frames: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Let clips go on into silence for an exponentially distributed time.

    The model learns by it that music ends. Without `silence` the batch is left as it is.

    Returns:
        Latents and mask, longer than before where an extension needs it, but never longer than
        `max_frames` or the model's own limit (or the batch, if that is longer already). So a crop
        of that length, whose music goes on, is not followed by silence.
    """
    if silence is None or mean_s <= 0:
        return latents, mask
    lengths = mask.sum(dim=1)
    ratio = model_config.downsampling_ratio
    longest = max(latents.shape[2], max_frames or model_config.sample_size // ratio)
    extended = extend_mask(
        frame_mask(lengths, longest),
        mean_frames=mean_s * model_config.sample_rate / ratio,
        generator=generator,
    )
    num_frames = int(extended.sum(dim=1).max())
    filled = fill_with_silence(latents, lengths, silence=silence, num_frames=num_frames)
    return filled, extended[:, :num_frames]


def fill_with_silence(
    latents: Tensor, lengths: Tensor, *, silence: Tensor, num_frames: int
) -> Tensor:
    """Return the clips in `num_frames` frames, each followed by silence from its beginning.

    Silence that is too short is repeated.
    """
    positions = torch.arange(num_frames, device=latents.device)
    offset = positions[None, :] - lengths.to(latents.device)[:, None]  # (B, T)
    quiet = silence.to(latents)[:, offset.clamp(min=0) % silence.shape[1]]  # (C, B, T)
    kept = latents[:, :, :num_frames]
    kept = torch.nn.functional.pad(kept, (0, num_frames - kept.shape[2]))
    return torch.where(offset[:, None, :] < 0, kept, quiet.transpose(0, 1))


def broken_clips(loss: StepLoss, clip_ids: Sequence[str]) -> list[str]:
    """Name the clips whose loss is no number; all of the batch if only their sum is none."""
    if torch.isfinite(loss.total):
        return []
    finite = torch.isfinite(loss.per_item).tolist()
    return [name for name, good in zip(clip_ids, finite, strict=True) if not good] or list(clip_ids)
