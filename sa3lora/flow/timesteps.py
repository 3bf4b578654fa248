"""Laws of the training time t (0 is data, 1 is noise)."""

import math
from typing import Final

import torch
from torch import Tensor

TIMESTEP_LAWS: Final = (
    "uniform",
    "logit_normal",
    "trunc_logit_normal",
    "log_snr",
    "log_snr_uniform",
)
TRUNCATION: Final = 0.075  # the released models discard the lowest 7.5 % of the logistic
LOG_SNR_EPS: Final = 1e-4


def trunc_logit_normal_q(normals: Tensor) -> Tensor:
    """Map standard normals to the truncated logit-normal law of data share q = 1 - t.

    A normal truncated from below at logit(0.075) goes through the logistic function, and what is
    left of the unit interval is stretched over [0, 1].

    Args:
        normals: Draws from the standard normal law, any shape.

    Returns:
        q in [0, 1], same shape, float32. Training uses t = 1 - q.
    """
    bound = torch.tensor(math.log(TRUNCATION / (1 - TRUNCATION)), dtype=torch.float64)
    below = torch.special.ndtr(bound).item()
    # float64: near u = 1 the inverse of the normal law loses all digits of a float32.
    u = torch.special.ndtr(normals.double())
    truncated: Tensor = torch.special.ndtri(below + (1 - below) * u)
    return ((truncated.sigmoid() - TRUNCATION) / (1 - TRUNCATION)).clamp(0, 1).float()


def sample_timesteps(
    name: str,
    n: int,
    *,
    generator: torch.Generator,
    p_one_shot: float = 0.0,
    mean_logsnr: float = -1.2,
    std_logsnr: float = 2.0,
    min_logsnr: float = -6.0,
    max_logsnr: float = 5.0,
) -> Tensor:
    """Draw one training time for each clip of a batch.

    Args:
        name: One of `TIMESTEP_LAWS`. "uniform" is a scrambled Sobol sequence, so that a batch
            covers [0, 1] evenly.
        n: How many.
        generator: Source of all randomness; the result lies on its device.
        p_one_shot: Probability of replacing a time by 1 (pure noise).
        mean_logsnr: Mean of the log signal-to-noise ratio, for "log_snr".
        std_logsnr: Its standard deviation, for "log_snr".
        min_logsnr: Lowest log signal-to-noise ratio, for "log_snr_uniform".
        max_logsnr: Highest one, for "log_snr_uniform".

    Returns:
        Times in [0, 1], (n,), float32, before any shift.

    Raises:
        ValueError: If `name` is unknown.
    """
    device = generator.device
    if name == "uniform":
        seed = int(torch.randint(2**31, (1,), generator=generator, device=device).item())
        sobol = torch.quasirandom.SobolEngine(1, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
        t = sobol.draw(n)[:, 0].to(device)
    elif name == "log_snr_uniform":
        u = torch.rand(n, generator=generator, device=device)
        t = _from_log_snr(min_logsnr + (max_logsnr - min_logsnr) * u)
    elif name in TIMESTEP_LAWS:
        normals = torch.randn(n, generator=generator, device=device)
        if name == "trunc_logit_normal":
            t = 1 - trunc_logit_normal_q(normals)
        elif name == "log_snr":
            t = _from_log_snr(mean_logsnr + std_logsnr * normals)
        else:
            t = normals.sigmoid()
    else:
        raise ValueError(f"timesteps must be one of {', '.join(TIMESTEP_LAWS)}, got {name!r}")
    if p_one_shot > 0:
        one_shot = torch.rand(n, generator=generator, device=device) < p_one_shot
        t = torch.where(one_shot, torch.ones_like(t), t)
    return t.float()


def _from_log_snr(log_snr: Tensor) -> Tensor:
    """Turn log signal-to-noise ratios into times, kept away from both ends."""
    return torch.sigmoid(-log_snr).clamp(LOG_SNR_EPS, 1 - LOG_SNR_EPS)
