"""Classifier-free guidance with adaptive projection."""

import torch
from torch import Tensor


def is_active(
    sigma: Tensor | float, interval: tuple[float, float], *, guidance_scale: float
) -> bool:
    """Tell whether a step needs the unconditional velocity at all.

    Args:
        sigma: Time of the step. Of a tensor only the first item counts, as in the released code.
        interval: Lowest and highest time with guidance, both included.
        guidance_scale: 1 is no guidance.

    Returns:
        True if the step is guided.
    """
    first = float(sigma.flatten()[0]) if isinstance(sigma, Tensor) else sigma
    return guidance_scale != 1 and interval[0] <= first <= interval[1]


def guided_velocity(
    x: Tensor,
    sigma: Tensor,
    *,
    conditional: Tensor,
    unconditional: Tensor,
    guidance_scale: float,
    apg_scale: float = 1.0,
    norm_threshold: float = 0.0,
    scale_phi: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Combine two velocities into a guided one (Ho and Salimans, 2022; Sadat et al., 2024).

    The work is done on estimates of the data and divided by sigma at the end. At small sigma this
    order of operations is visible in float32, and the released models were tuned with it.

    Args:
        x: Noisy latents that both velocities belong to, (B, C, T).
        sigma: Time of each item, (B,), above 0.
        conditional: Velocity with the prompt, (B, C, T).
        unconditional: Velocity without it, or with the negative prompt, (B, C, T).
        guidance_scale: 1 gives back `conditional` up to rounding.
        apg_scale: 1 keeps only the part of the guidance orthogonal to the conditional estimate,
            0 is plain guidance, between is a blend.
        norm_threshold: Largest norm of the guidance of an item; 0 is no limit.
        scale_phi: Share of a rescale to the channel deviation of `conditional`.
        mask: True on real frames, (B, T). Padding takes no part in norms and projection.

    Returns:
        Velocity, (B, C, T), in the wider of the dtypes of `x` and float32.
    """
    s = sigma.to(torch.promote_types(sigma.dtype, torch.float32))[:, None, None]
    frames = None if mask is None else mask[:, None, :]
    denoised = x - s * conditional
    difference = denoised - (x - s * unconditional)
    if norm_threshold > 0:
        difference = _limit_norm(difference, norm_threshold, frames=frames)
    if apg_scale != 0:
        orthogonal = _orthogonal_part(difference, denoised, frames=frames)
        if apg_scale == 1:
            difference = orthogonal
        else:
            difference = apg_scale * orthogonal + (1 - apg_scale) * difference
    guided = denoised + (guidance_scale - 1) * difference
    velocity = (x - guided) / s
    if scale_phi != 0:
        ratio = conditional.std(dim=1, keepdim=True) / velocity.std(dim=1, keepdim=True)
        velocity = scale_phi * (velocity * ratio) + (1 - scale_phi) * velocity
    return velocity


def _limit_norm(difference: Tensor, threshold: float, *, frames: Tensor | None) -> Tensor:
    """Shrink items whose norm over real frames is above the threshold."""
    counted = difference if frames is None else difference * frames
    return difference * (threshold / _norm(counted)).clamp(max=1)


def _orthogonal_part(difference: Tensor, direction: Tensor, *, frames: Tensor | None) -> Tensor:
    """Remove from each item what points along the direction; padding becomes 0."""
    wide = torch.promote_types(difference.dtype, torch.float32)
    v0, v1 = difference.to(wide), direction.to(wide)
    if frames is None:
        unit = v1 / _norm(v1).clamp(min=1e-12)
        rest = v0 - (v0 * unit).sum(dim=(1, 2), keepdim=True) * unit
    else:
        real = v1 * frames
        unit = real / _norm(real).clamp(min=1e-8)
        rest = (v0 - (v0 * unit).sum(dim=(1, 2), keepdim=True) * unit) * frames
    return rest.to(difference.dtype)


def _norm(x: Tensor) -> Tensor:
    """Length of each item, (B, 1, 1)."""
    length: Tensor = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    return length
