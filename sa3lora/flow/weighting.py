"""How much a clip's loss counts at its noise level."""

from torch import Tensor


def min_snr_weight(t: Tensor, gamma: float) -> Tensor:
    """Weight of a squared velocity error by which no noise level dominates (Hang et al., 2023).

    Min-SNR trains on min(SNR, gamma) ||x0 - data||^2. On the straight path x_t = (1 - t) data + t
    noise the signal-to-noise ratio is ((1 - t) / t)^2, and the estimate of the data is
    x0 = x_t - t v, so its error is t times that of the velocity. What is left for the velocity is

        w(t) = t^2 min(((1 - t) / t)^2, gamma) = min((1 - t)^2, gamma t^2),

    which is 0 at both ends and largest, gamma / (1 + sqrt(gamma))^2, where the ratio is gamma.

    Args:
        t: Noise levels in [0, 1], any shape.
        gamma: Largest signal-to-noise ratio that still counts in full; the paper takes 5.

    Returns:
        Weights, same shape.

    Raises:
        ValueError: If `gamma` is not above 0.
    """
    if gamma <= 0:
        raise ValueError(f"gamma must be above 0, got {gamma}")
    return (1 - t).square().minimum(gamma * t.square())
