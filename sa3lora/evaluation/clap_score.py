"""How well audio follows its prompt, and how varied a set of clips is, in an embedding space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_means(vectors: Tensor, tracks: Tensor) -> Tensor:
    """Average the unit-length window embeddings of every track, (num_tracks, D) float64.

    The mean is not brought back to unit length: its product with a prompt is then the mean of
    the windows' cosines.
    """
    units = F.normalize(vectors.double(), dim=1)
    sums = torch.zeros(int(tracks.max()) + 1, units.shape[1], dtype=torch.float64)
    sums.index_add_(0, tracks, units)
    counts = torch.bincount(tracks, minlength=len(sums)).double()
    return sums / counts[:, None]


def matched_scores(clips: Tensor, prompts: Tensor) -> Tensor:
    """Cosine between each clip and its own prompt, (n,): the CLAP score.

    Args:
        clips: Clip embeddings as `clip_means` gives them, (n, D).
        prompts: Embedding of each clip's prompt, (n, D).
    """
    _check_pairs(clips, prompts)
    return (clips.double() * F.normalize(prompts.double(), dim=1)).sum(dim=1)


def shuffled_scores(clips: Tensor, prompts: Tensor, *, texts: list[str]) -> Tensor:
    """Average cosine between each clip and all prompts that are not its own, (n,).

    What a clip scores against any prompt of the list; only the part of the CLAP score above it
    shows that prompts matter. Exact over all shuffles, not one drawn.

    Args:
        clips: Clip embeddings, (n, D).
        prompts: Prompt embeddings, (n, D).
        texts: The prompts, so that equal ones do not count as foreign.

    Returns:
        (n,); NaN for a clip whose prompt all others share.
    """
    _check_pairs(clips, prompts)
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    own = torch.tensor([numbers[text] for text in texts])
    foreign = (own[:, None] != own[None, :]).double()
    cosines = clips.double() @ F.normalize(prompts.double(), dim=1).T
    count = foreign.sum(dim=1)
    mean = (cosines * foreign).sum(dim=1) / count.clamp(min=1)
    return torch.where(count > 0, mean, torch.full_like(mean, torch.nan))


def diversity_replicates(clips: Tensor, counts: Tensor) -> Tensor:
    """Average cosine distance between different clips, for every bootstrap replicate, (R,).

    Args:
        clips: Clip embeddings, (n, D).
        counts: How often each clip occurs in each replicate, (R, n). A clip and its own copy are
            no pair.
    """
    units = F.normalize(clips.double(), dim=1)
    distance = (1 - units @ units.T).fill_diagonal_(0)
    weights = counts.double()
    pairs = weights.sum(dim=1).pow(2) - weights.pow(2).sum(dim=1)
    total = ((weights @ distance) * weights).sum(dim=1)
    return torch.where(pairs > 0, total / pairs, torch.full_like(total, torch.nan))


def change_scores(base: Tensor, adapted: Tensor) -> Tensor:
    """Cosine distance between the two systems' clips of one prompt and seed, (n,)."""
    _check_pairs(base, adapted)
    return 1 - F.cosine_similarity(base.double(), adapted.double(), dim=1)


def _check_pairs(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"both must have the same clips and width, got {tuple(first.shape)} "
            f"and {tuple(second.shape)}"
        )
