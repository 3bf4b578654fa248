"""Kernel audio distance: an unbiased, distribution-free companion of the Fréchet distance."""

from __future__ import annotations

import torch
from torch import Tensor

# KAD is printed a hundredfold (Chung et al., 2025, arXiv 2502.15602).
KAD_SCALE = 100.0


def median_bandwidth(reference: Tensor) -> float:
    """Median distance between different samples of the reference, the kernel's width in KAD.

    Raises:
        ValueError: If fewer than 2 samples are given, or more than half of the pairs are equal.
    """
    values = reference.double()
    if len(values) < 2:
        raise ValueError(f"a bandwidth needs at least 2 reference samples, got {len(values)}")
    median = torch.pdist(values).median().item()
    if median == 0:
        raise ValueError("reference must vary, but half of its samples or more are equal")
    return median


def gaussian_gram(first: Tensor, second: Tensor, *, bandwidth: float) -> Tensor:
    """Gaussian kernel between all pairs, (n, m) float64: exp(-|x - y|^2 / (2 bandwidth^2))."""
    # The direct distance, since the product form loses the digits of near neighbours.
    mode = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(first.double(), second.double(), compute_mode=mode)
    return torch.exp(-distance.pow(2) / (2 * bandwidth**2))


def unbiased_mmd(
    within_first: Tensor,
    within_second: Tensor,
    between: Tensor,
    *,
    first_counts: Tensor,
    second_counts: Tensor,
) -> Tensor:
    """Squared maximum mean discrepancy without bias (Gretton et al., 2012, lemma 6).

    Pairs of a sample with itself never count, not even with its own copy in a replicate. May be
    negative: it is centred on 0 for two sets of the same kind.

    Args:
        within_first: Kernel (n, n).
        within_second: Kernel (m, m).
        between: Kernel (n, m).
        first_counts: How often each sample occurs in each replicate, (R, n).
        second_counts: The same for the second set, (R, m).

    Returns:
        One value per replicate, (R,); NaN where fewer than 2 different samples are left.
    """
    first, second = first_counts.double(), second_counts.double()
    cross = ((first @ between) * second).sum(dim=1) / (first.sum(dim=1) * second.sum(dim=1))
    return _mean_of_pairs(within_first, first) + _mean_of_pairs(within_second, second) - 2 * cross


def _mean_of_pairs(kernel: Tensor, counts: Tensor) -> Tensor:
    """Average the kernel over pairs of different samples, (R,)."""
    squares = counts.pow(2)
    total = ((counts @ kernel) * counts).sum(dim=1) - squares @ kernel.diagonal()
    pairs = counts.sum(dim=1).pow(2) - squares.sum(dim=1)
    return torch.where(pairs > 0, total / pairs, torch.full_like(total, torch.nan))


def kernel_audio_distance(samples: Tensor, reference: Tensor) -> float:
    """Kernel audio distance of one set to a reference (Chung et al., 2025, arXiv 2502.15602).

    Args:
        samples: Embeddings (n, D), two at least.
        reference: Embeddings (m, D), two at least.
    """
    ones = torch.ones(1, len(samples)), torch.ones(1, len(reference))
    return kernel_replicates(samples, ones[0], reference=reference, reference_counts=ones[1]).item()


def kernel_replicates(
    samples: Tensor, counts: Tensor, *, reference: Tensor, reference_counts: Tensor
) -> Tensor:
    """Score every bootstrap replicate; the bandwidth is that of the whole reference throughout.

    Args:
        samples: Embeddings (n, D).
        counts: How often each sample occurs in each replicate, (R, n).
        reference: Embeddings (m, D).
        reference_counts: The same for the reference, (R, m).
    """
    bandwidth = median_bandwidth(reference)
    return KAD_SCALE * unbiased_mmd(
        gaussian_gram(samples, samples, bandwidth=bandwidth),
        gaussian_gram(reference, reference, bandwidth=bandwidth),
        gaussian_gram(samples, reference, bandwidth=bandwidth),
        first_counts=counts,
        second_counts=reference_counts,
    )
