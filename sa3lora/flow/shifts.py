"""Warps of flow time that depend on the length of a clip.

In every function `t` and `length` broadcast against each other, and t = 0 and t = 1 stay put.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

# What all released models sample with: their configs hold no sampling shift.
SAMPLING_DEFAULT: Final[Mapping[str, Any]] = {
    "type": "logsnr",
    "anchor_length": 2000,
    "anchor_logsnr": -6.2,
    "rate": 0.0,
    "logsnr_end": 2.0,
}


def effective_length(seconds_total: Tensor, *, sample_rate: int, ratio: int) -> Tensor:
    """Count the latent frames that a duration takes, the last one perhaps in part.

    Args:
        seconds_total: Durations, (B,). Give float64 where a duration may fall on a sample border.
        sample_rate: Samples per second of the model's audio.
        ratio: Samples per latent frame.

    Returns:
        Frames, (B,), float32.
    """
    samples = torch.floor(seconds_total.double() * sample_rate)
    return torch.ceil(samples / ratio).float()


def shift_full(
    t: Tensor,
    length: Tensor | float,
    *,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    min_length: float = 256,
    max_length: float = 4096,
    use_sine: bool = False,
) -> Tensor:
    """Push time towards noise, the more so the longer the clip (log alpha linear in length).

    Args:
        t: Times in [0, 1].
        length: Latent frames; clamped to [min_length, max_length].
        base_shift: Logarithm of alpha at `min_length`.
        max_shift: Logarithm of alpha at `max_length`.
        min_length: Length below which nothing changes any more.
        max_length: Length above which nothing changes any more.
        use_sine: Bend the result by sin(pi t / 2).

    Returns:
        Warped times.
    """
    frames = _as_tensor(length, t).clamp(min_length, max_length)
    slope = (max_shift - base_shift) / (max_length - min_length)
    alpha = torch.exp(base_shift + slope * (frames - min_length))
    warped = _rational(t, alpha)
    return torch.sin(math.pi / 2 * warped) if use_sine else warped


def shift_flux(
    t: Tensor,
    length: Tensor | float,
    *,
    min_length: float = 256,
    max_length: float = 4096,
    alpha_min: float = 1.0,
    alpha_max: float = 1.0,
) -> Tensor:
    """Push time towards noise with log alpha linear in the logarithm of the length.

    Args:
        t: Times in [0, 1].
        length: Latent frames; clamped to [min_length, max_length].
        min_length: Length at which alpha is `alpha_min`.
        max_length: Length at which alpha is `alpha_max`.
        alpha_min: Warp of the shortest clips, 1 for none.
        alpha_max: Warp of the longest clips, 1 for none.

    Returns:
        Warped times.
    """
    frames = _as_tensor(length, t).clamp(min_length, max_length)
    share = (frames.log() - math.log(min_length)) / (math.log(max_length) - math.log(min_length))
    low, high = math.log(alpha_min), math.log(alpha_max)
    return _rational(t, torch.exp(low + (high - low) * share))


def shift_logsnr(
    t: Tensor,
    length: Tensor | float,
    *,
    anchor_length: float = 2000,
    anchor_logsnr: float = -6.2,
    rate: float = 1.0,
    logsnr_end: float = 2.0,
) -> Tensor:
    """Make the log signal-to-noise ratio linear in time between two ends.

    Args:
        t: Times; at or below 0 gives exactly 0, at or above 1 exactly 1.
        length: Latent frames.
        anchor_length: Length at which the noisy end has `anchor_logsnr`.
        anchor_logsnr: Log signal-to-noise ratio next to t = 1.
        rate: How much it falls with each doubling of the length; 0 ignores the length.
        logsnr_end: Log signal-to-noise ratio next to t = 0.

    Returns:
        Warped times.
    """
    start = anchor_logsnr - rate * torch.log2(_as_tensor(length, t) / anchor_length)
    warped = torch.sigmoid(-(logsnr_end - t * (logsnr_end - start)))
    warped = torch.where(t <= 0, torch.zeros_like(warped), warped)
    return torch.where(t >= 1, torch.ones_like(warped), warped)


_FUNCTIONS: Final[Mapping[str, Callable[..., Tensor]]] = {
    "full": shift_full,
    "flux": shift_flux,
    "logsnr": shift_logsnr,
}
_PARAMETERS: Final[Mapping[str, frozenset[str]]] = {
    name: frozenset(function.__kwdefaults__ or {}) for name, function in _FUNCTIONS.items()
}


def shift(t: Tensor, length: Tensor | float, *, options: Mapping[str, Any] | None) -> Tensor:
    """Warp time as the `distribution_shift_options` of a model config say.

    Args:
        t: Times in [0, 1].
        length: Latent frames; broadcasts against `t`.
        options: "type" ("full" when missing, "flux", "logsnr", "none") and its parameters.
            None is the identity: a config without options trains without a shift.

    Returns:
        Warped times, in the broadcast shape unless nothing is warped.

    Raises:
        ValueError: If the type or a parameter is unknown.
    """
    if options is None:
        return t
    kind = options.get("type", "full")
    if kind == "none":
        return t
    if kind not in _FUNCTIONS:
        known = ", ".join([*_FUNCTIONS, "none"])
        raise ValueError(f"shift type must be one of {known}, got {kind!r}")
    parameters = {name: value for name, value in options.items() if name != "type"}
    if unknown := sorted(set(parameters) - _PARAMETERS[kind]):
        known = ", ".join(sorted(_PARAMETERS[kind]))
        raise ValueError(f"shift {kind!r} has no parameter {', '.join(unknown)}; it has {known}")
    return _FUNCTIONS[kind](t, length, **parameters)


def _rational(t: Tensor, alpha: Tensor) -> Tensor:
    """Multiply the odds t / (1 - t) by alpha."""
    return alpha * t / (1 + (alpha - 1) * t)


def _as_tensor(length: Tensor | float, t: Tensor) -> Tensor:
    return torch.as_tensor(length, dtype=t.dtype, device=t.device)
