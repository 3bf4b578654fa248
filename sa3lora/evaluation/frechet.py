"""Fréchet audio distance in float64, with its bootstrap interval and its limit of many samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sa3lora.evaluation.bootstrap import (
    Estimate,
    interval_from_replicates,
    resample_counts,
)


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and a factor F (k, D) of the covariance, F^T F = S."""

    mean: Tensor
    factor: Tensor
    num_samples: int

    @property
    def is_singular(self) -> bool:
        """Say whether there were too few samples for a covariance of full rank."""
        return self.num_samples <= self.mean.shape[0]


@dataclass(frozen=True)
class Extrapolation:
    """The distance at infinitely many samples, and how well the straight line fits."""

    value: float
    r_squared: float
    num_windows: tuple[int, ...]
    distances: tuple[float, ...]


def fit_gaussian(samples: Tensor, *, weights: Tensor | None = None) -> Gaussian:
    """Fit mean and unbiased covariance.

    Args:
        samples: Embeddings (n, D); two at least.
        weights: How often each sample counts, (n,), non-negative integers. Default: once each.

    Raises:
        ValueError: If fewer than 2 samples count, or one is not finite.
    """
    values = samples.double()  # float64: the product of two covariances loses half the digits
    if not torch.isfinite(values).all():
        raise ValueError("samples must be finite, got NaN or infinity")
    counts = torch.ones(len(values), dtype=torch.float64) if weights is None else weights.double()
    values, counts = values[counts > 0], counts[counts > 0]
    total = counts.sum()
    if total < 2:
        raise ValueError(f"a Gaussian needs at least 2 samples, got {int(total)}")
    mean = (counts[:, None] * values).sum(dim=0) / total
    factor = (counts / (total - 1)).sqrt()[:, None] * (values - mean)
    return Gaussian(mean, factor, int(total))


def gaussian_from_moments(mean: Tensor, covariance: Tensor, *, num_samples: int) -> Gaussian:
    """Take published statistics; the covariance's root comes from its symmetric eigenvalues."""
    symmetric = (covariance.double() + covariance.double().T) / 2
    values, vectors = torch.linalg.eigh(symmetric)
    root = values.clamp(min=0).sqrt()[:, None] * vectors.T
    return Gaussian(mean.double(), root, num_samples)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Squared Fréchet distance between two Gaussians (Dowson and Landau, 1982).

    tr((S1^1/2 S2 S1^1/2)^1/2) is the sum of the singular values of F1 F2^T for any factors with
    F^T F = S: the roots of the symmetric eigenvalues, without squaring them first. Works for
    fewer samples than dimensions.
    """
    left, right = first.factor, second.factor
    size = left.shape[1]
    if len(left) > size and len(right) > size:
        left, right = _square(left), _square(right)
    overlap = torch.linalg.svdvals(left @ right.T).sum()
    spread = first.factor.pow(2).sum() + second.factor.pow(2).sum()
    moved = (first.mean - second.mean).pow(2).sum()
    return max(0.0, float(moved + spread - 2 * overlap))


def _square(factor: Tensor) -> Tensor:
    """Give the (D, D) factor of the same covariance."""
    root: Tensor = torch.linalg.qr(factor, mode="r").R
    return root


def frechet_replicates(
    samples: Tensor, counts: Tensor, *, reference: Tensor, reference_counts: Tensor
) -> Tensor:
    """Score every bootstrap replicate.

    Args:
        samples: Embeddings of one system, (n, D).
        counts: How often each sample occurs in each replicate, (R, n).
        reference: Embeddings of the reference, (m, D).
        reference_counts: The same for the reference, (R, m).

    Returns:
        Distances (R,), NaN where a replicate holds fewer than 2 windows on a side.
    """
    distances = []
    for drawn, reference_drawn in zip(counts, reference_counts, strict=True):
        if drawn.sum() < 2 or reference_drawn.sum() < 2:
            distances.append(float("nan"))
            continue
        fitted = fit_gaussian(samples, weights=drawn)
        distances.append(frechet_distance(fitted, fit_gaussian(reference, weights=reference_drawn)))
    return torch.tensor(distances, dtype=torch.float64)


def frechet_estimate(
    samples: Tensor,
    reference: Tensor,
    *,
    tracks: Tensor,
    reference_tracks: Tensor,
    replicates: int = 200,
    seed: int = 0,
) -> Estimate:
    """Score one set against a reference, with the interval from resampling tracks on both sides.

    Args:
        samples: Embeddings (n, D).
        reference: Embeddings (m, D).
        tracks: Track of each sample, (n,), numbered from 0.
        reference_tracks: Track of each reference sample, (m,).
        replicates: Number of bootstrap replicates.
        seed: Seed of the resampling.
    """
    value = frechet_distance(fit_gaussian(samples), fit_gaussian(reference))
    generator = torch.Generator().manual_seed(seed)
    num_tracks, num_reference = int(tracks.max()) + 1, int(reference_tracks.max()) + 1
    counts = resample_counts(num_tracks, replicates=replicates, generator=generator)
    others = resample_counts(num_reference, replicates=replicates, generator=generator)
    drawn = frechet_replicates(
        samples,
        counts[:, tracks],
        reference=reference,
        reference_counts=others[:, reference_tracks],
    )
    fewer = min(num_tracks, num_reference)
    return interval_from_replicates(value, drawn[drawn.isfinite()], num_tracks=fewer)


def extrapolate_to_infinity(
    samples: Tensor,
    reference: Tensor,
    *,
    tracks: Tensor,
    num_sizes: int = 8,
    draws: int = 8,
    seed: int = 0,
) -> Extrapolation | None:
    """Extrapolate the distance to infinitely many samples by a line in 1 / n.

    The bias of the distance falls as 1 / n (Chong and Forsyth, 2020; for audio Gui et al., 2024).
    Subsets are of whole tracks, drawn without replacement; the reference stays whole.

    Returns:
        None where there are fewer than 8 tracks, too few for a line.
    """
    num_tracks = int(tracks.max()) + 1
    if num_tracks < 8:
        return None
    target = fit_gaussian(reference)
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(num_tracks // 2, num_tracks, num_sizes).round().long()
    windows, distances = [], []
    for size in sorted(set(spread.tolist())):
        for _ in range(draws if size < num_tracks else 1):
            kept = torch.randperm(num_tracks, generator=generator)[:size]
            subset = samples[torch.isin(tracks, kept)]
            windows.append(len(subset))
            distances.append(frechet_distance(fit_gaussian(subset), target))
    inverse = 1 / torch.tensor(windows, dtype=torch.float64)
    values = torch.tensor(distances, dtype=torch.float64)
    design = torch.stack([torch.ones_like(inverse), inverse], dim=1)
    line = torch.linalg.lstsq(design, values[:, None]).solution[:, 0]
    residual = (values - design @ line).pow(2).sum()
    total = (values - values.mean()).pow(2).sum()
    r_squared = 1.0 if total == 0 else (1 - residual / total).item()
    return Extrapolation(line[0].item(), r_squared, tuple(windows), tuple(distances))
