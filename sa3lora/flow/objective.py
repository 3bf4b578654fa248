"""Rectified flow as the released models train it: path, target, silence, dropout and loss."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

NORMALISATIONS: Final = ("none", "timestep", "sample", "sample_channel")
COUNT_EPS: Final = 1e-8
VARIANCE_EPS: Final = 1e-6


def interpolate(data: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
    """Mix data and noise: (1 - t) data + t noise.

    Args:
        data: Latents, (B, C, T).
        noise: Noise, (B, C, T).
        t: Time of each item, (B,), or one for all.

    Returns:
        Latents at time t, (B, C, T).
    """
    share = t[:, None, None] if isinstance(t, Tensor) and t.ndim == 1 else t
    return data * (1 - share) + noise * share


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """Velocity of the straight path from data to noise, the same at every time."""
    return noise - data


def frame_mask(lengths: Tensor, num_frames: int) -> Tensor:
    """Mark the first `lengths` frames of each row, (B, num_frames), bool."""
    return torch.arange(num_frames, device=lengths.device)[None, :] < lengths[:, None]


def rescale_lengths(lengths: Tensor, *, source_frames: int, num_frames: int) -> Tensor:
    """Carry frame counts from one frame rate to another, rounding up.

    Args:
        lengths: Real frames among `source_frames`, (B,), integers.
        source_frames: Frames of the mask that they come from.
        num_frames: Frames of the latents.

    Returns:
        Real frames among `num_frames`, (B,), int64.
    """
    scaled = -(-lengths.long() * num_frames // source_frames)
    return scaled.clamp(max=num_frames)


def extend_mask(mask: Tensor, *, mean_frames: float, generator: torch.Generator) -> Tensor:
    """Count some of the silence behind each clip as real, so that a model learns to end.

    Each item gets floor(e) more frames, e exponential, never beyond the batch.

    Args:
        mask: True on real frames, which come first, (B, T).
        mean_frames: Mean of e: seconds of silence x sample rate / ratio. 0 extends nothing and
            draws nothing.
        generator: Source of all randomness.

    Returns:
        Longer mask, (B, T). The frames that it uncovers should hold encoded silence.

    Raises:
        ValueError: If `mean_frames` is negative.
    """
    if mean_frames < 0:
        raise ValueError(f"mean_frames must be 0 or more, got {mean_frames}")
    if mean_frames == 0:
        return mask
    draws = torch.empty(len(mask), device=generator.device)
    draws.exponential_(1 / mean_frames, generator=generator)
    extra = draws.clamp(max=mask.shape[1]).floor().long().to(mask.device)
    return frame_mask(mask.sum(dim=1) + extra, mask.shape[1])


def sample_dropout(n: int, *, probability: float, generator: torch.Generator) -> Tensor:
    """Draw which clips train without their prompt, so that guidance works; (n,), bool."""
    return torch.rand(n, generator=generator, device=generator.device) < probability


def masked_mse(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Average squared error over real frames, every clip weighing the same.

    Args:
        pred: Predicted velocity, (B, C, T).
        target: True velocity, (B, C, T).
        mask: True on frames that count, (B, T). A row without any counts as 0.

    Returns:
        Scalar, float32.
    """
    return _item_means(_squared_error(pred, target, mask), mask).mean()


def pooled_mse(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Average squared error over all real entries of a batch: long clips weigh more.

    Args:
        pred: Predicted velocity, (B, C, T).
        target: True velocity, (B, C, T).
        mask: True on frames that count, (B, T).

    Returns:
        Scalar, float32.
    """
    error = _squared_error(pred, target, mask)
    return error.sum() / (pred.shape[1] * mask.sum() + COUNT_EPS)


@dataclass(frozen=True)
class FlowLoss:
    """Terms of the training loss.

    Attributes:
        total: signal + context_weight x context; train on this.
        signal: Mean over items of the error on frames to make.
        context: Mean over items of the error on given frames, reported at any weight.
        per_item: What each item adds to the batch mean `total`, (B,).
    """

    total: Tensor
    signal: Tensor
    context: Tensor
    per_item: Tensor


def flow_loss(
    pred: Tensor,
    target: Tensor,
    mask: Tensor,
    keep: Tensor,
    *,
    context_weight: float = 1.0,
    normalisation: str = "none",
) -> FlowLoss:
    """Squared velocity error, averaged per item over made and over given frames.

    Values in padding never matter, not even NaN. An item without made (or given) frames adds 0 to
    that mean, as in the released objective.

    Args:
        pred: Predicted velocity, (B, C, T).
        target: True velocity, (B, C, T).
        mask: True on real frames, silence extension included, (B, T).
        keep: True on frames that the model was given, (B, T).
        context_weight: Weight of the given frames; 0 trains on the made ones alone.
        normalisation: Divide the error on made frames by the variance of the target: "none",
            "timestep" (over channels, per frame), "sample" (over channels and made frames) or
            "sample_channel" (over made frames, per channel).

    Returns:
        The terms, float32.

    Raises:
        ValueError: If a shape does not fit or `normalisation` is unknown.
    """
    if normalisation not in NORMALISATIONS:
        known = ", ".join(NORMALISATIONS)
        raise ValueError(f"normalisation must be one of {known}, got {normalisation!r}")
    real, given = mask.bool(), keep.bool()
    signal_frames, context_frames = real & ~given, real & given
    error = _squared_error(pred, target, real)
    scaled = error
    if normalisation != "none":
        variance = _target_variance(target, signal_frames, normalisation=normalisation)
        scaled = error / variance
    signal = _item_means(scaled, signal_frames)
    context = _item_means(error, context_frames)
    return FlowLoss(
        total=signal.mean() + context_weight * context.mean(),
        signal=signal.mean(),
        context=context.mean(),
        per_item=signal + context_weight * context,
    )


def _squared_error(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error that is 0, with a gradient of 0, outside the mask."""
    if pred.shape != target.shape:
        raise ValueError(f"target must be {tuple(pred.shape)}, got {tuple(target.shape)}")
    expected = (pred.shape[0], pred.shape[2])
    if mask.shape != expected:
        raise ValueError(f"mask must be (B, T) = {expected}, got {tuple(mask.shape)}")
    difference = pred.float() - target.float()
    # Masked before the square: a NaN in padding would come back through the gradient of a product.
    return torch.where(mask[:, None, :].bool(), difference, 0.0).square()


def _item_means(error: Tensor, frames: Tensor) -> Tensor:
    """Mean error of each item over its marked frames, 0 where it has none, (B,)."""
    counted = torch.where(frames[:, None, :], error, 0.0).sum(dim=(1, 2))
    return counted / (error.shape[1] * frames.sum(dim=1) + COUNT_EPS)


def _target_variance(target: Tensor, frames: Tensor, *, normalisation: str) -> Tensor:
    """Population variance of the target over marked frames; 1 for items that have none."""
    dims = {"timestep": (1,), "sample": (1, 2), "sample_channel": (2,)}[normalisation]
    inside = frames[:, None, :].expand_as(target)
    values = torch.where(inside, target.detach().float(), 0.0)
    count = inside.sum(dim=dims, keepdim=True).clamp(min=1)
    mean = values.sum(dim=dims, keepdim=True) / count
    deviation = torch.where(inside, values - mean, 0.0).square()
    variance = deviation.sum(dim=dims, keepdim=True) / count + VARIANCE_EPS
    return torch.where(inside.any(dim=dims, keepdim=True), variance, 1.0)
