"""The losses of one training step: silence extension, fresh draws, the released objective.

Nothing here knows about adapters, caches or devices' settings: the same function trains a whole
denoiser from nothing (text embeddings may carry gradients) or a LoRA adapter on a frozen one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from sa3lora.flow import extend_mask, frame_mask
from sa3lora.models.config import ModelConfig
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.upload import pinned, upload
from sa3lora.probe import Draws, StepLoss, couple_draws, draw_uncoupled, loss_of_draws
from sa3lora.recipe import ObjectiveSection

__all__ = [
    "MicroBatch",
    "StepLoss",
    "broken_clips",
    "extend_by_silence",
    "fill_with_silence",
    "flow_step_loss",
    "loss_of_micro_batch",
    "prepare_step",
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
        latents: Clips, (B, C, T), on the host, where everything about them is drawn.
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
    [batch] = prepare_step(
        [latents],
        masks=[mask],
        seconds=[seconds],
        objective=objective,
        model_config=model_config,
        generators=[generator],
        silence=silence,
        max_frames=max_frames,
    )
    sent = batch.sent(denoiser.device)
    return loss_of_micro_batch(denoiser, sent, text=text, objective=objective)


@dataclass(frozen=True)
class MicroBatch:
    """Clips of one forward pass, ready for it.

    They are made on the host. What the host reads of them later, mask and dropout, stays there.

    Attributes:
        latents: Clips with their silence, (B, C, T).
        mask: True on real frames, silence extension included, (B, T).
        seconds: `seconds_total` of each clip, (B,), float32.
        draws: Time, noise coupled over the whole step, keep-mask and prompt dropout.
    """

    latents: Tensor
    mask: Tensor
    seconds: Tensor
    draws: Draws

    def pinned(self, device: torch.device) -> MicroBatch:
        """Lie where the device fetches it from without the host."""
        return self._with([pinned(each, device) for each in self._to_send])

    def sent(self, device: torch.device) -> MicroBatch:
        """Go to the device, which nobody waits for."""
        return self._with([upload(each, device) for each in self._to_send])

    @property
    def _to_send(self) -> list[Tensor]:
        return [self.latents, self.draws.t, self.draws.noise, self.draws.keep]

    def _with(self, tensors: Sequence[Tensor]) -> MicroBatch:
        latents, t, noise, keep = tensors
        draws = replace(self.draws, t=t, noise=noise, keep=keep)
        return replace(self, latents=latents, draws=draws)


def prepare_step(
    latents: Sequence[Tensor],
    *,
    masks: Sequence[Tensor],
    seconds: Sequence[Tensor],
    objective: ObjectiveSection,
    model_config: ModelConfig,
    generators: Sequence[Generator],
    silence: Tensor | None = None,
    max_frames: int | None = None,
) -> list[MicroBatch]:
    """Extend and draw for every micro-batch of an optimizer step, then couple over all of them.

    So a step of eight single clips is coupled like one batch of eight. Arguments are those of
    `flow_step_loss`, one entry for each micro-batch; each draws from a generator of its own.
    """
    extended = [
        extend_by_silence(
            each,
            mask,
            silence=silence,
            mean_s=objective.silence_s,
            model_config=model_config,
            generator=generator,
            max_frames=max_frames,
        )
        for each, mask, generator in zip(latents, masks, generators, strict=True)
    ]
    # Any clip may get any noise of the step; without coupling each keeps its own.
    longest = max(each.shape[2] for each, _ in extended)
    couples = objective.coupling != "none" and len(extended) > 1
    draws = [
        draw_uncoupled(
            each,
            mask,
            seconds=durations,
            objective=objective,
            model_config=model_config,
            generator=generator,
            noise_frames=longest if couples else None,
        )
        for (each, mask), durations, generator in zip(extended, seconds, generators, strict=True)
    ]
    if objective.coupling != "none":
        draws = couple_draws(
            draws,
            [each for each, _ in extended],
            masks=[mask for _, mask in extended],
            method=objective.coupling,
        )
    return [
        MicroBatch(each, mask, durations, drawn)
        for (each, mask), durations, drawn in zip(extended, seconds, draws, strict=True)
    ]


def loss_of_micro_batch(
    denoiser: Denoiser,
    batch: MicroBatch,
    *,
    text: Sequence[Tensor],
    objective: ObjectiveSection,
    packed: bool = False,
) -> StepLoss:
    """Score the denoiser on a micro-batch as the recipe's objective says, prior term excluded."""
    return loss_of_draws(
        denoiser,
        batch.latents,
        mask=batch.mask,
        seconds=batch.seconds,
        text=text,
        draws=batch.draws,
        context_weight=objective.context_weight,
        normalisation=objective.normalisation,
        min_snr_gamma=objective.min_snr_gamma,
        packed=packed,
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
