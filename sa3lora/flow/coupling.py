"""Which noise goes with which clip of a batch (mini-batch optimal transport)."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

COUPLINGS: Final = ("none", "sinkhorn", "exact")


def pairwise_cost(data: Tensor, noise: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Squared distance of every clip to every noise.

    Args:
        data: Latents, (B, C, T).
        noise: Noise, (B, C, T).
        mask: True on real frames of the clips, (B, T). Without it padding counts, as it does in
            the released objective.

    Returns:
        Cost with clips in rows and noises in columns, (B, B), float32.
    """
    d, n = data.float(), noise.float()
    if mask is None:
        noise_squares = n.square().flatten(1).sum(dim=1)[None, :]
    else:
        frames = mask.float()
        d = d * frames[:, None, :]
        noise_squares = frames @ n.square().sum(dim=1).T
    data_squares = d.square().flatten(1).sum(dim=1)[:, None]
    return data_squares + noise_squares - 2 * d.flatten(1) @ n.flatten(1).T


def sinkhorn_plan(
    data: Tensor, noise: Tensor, *, iterations: int = 20, mask: Tensor | None = None
) -> Tensor:
    """Soft transport plan between clips and noises (Cuturi, 2013).

    The entropic weight is the mean cost, so the plan is nearly uniform: this is how the released
    models were trained.

    Args:
        data: Latents, (B, C, T).
        noise: Noise, (B, C, T).
        iterations: Rounds of normalising rows, then columns.
        mask: As in `pairwise_cost`.

    Returns:
        Plan whose columns sum to 1, (B, B), float32.
    """
    cost = pairwise_cost(data, noise, mask=mask)
    log_plan = -cost / cost.mean()
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(dim=1, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(dim=0, keepdim=True)
    return log_plan.exp()


def greedy_assignment(plan: Tensor) -> Tensor:
    """Give each row in turn the column of its largest remaining entry.

    Args:
        plan: (B, B), larger is better.

    Returns:
        Column of each row, a permutation, (B,), int64.
    """
    remaining = plan.detach().cpu().clone()
    columns = []
    for row in range(len(remaining)):
        column = int(remaining[row].argmax())
        columns.append(column)
        remaining[:, column] = -torch.inf
    return torch.tensor(columns, dtype=torch.int64, device=plan.device)


def exact_assignment(data: Tensor, noise: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Find the assignment of the least total cost (Kuhn, 1955).

    Args:
        data: Latents, (B, C, T).
        noise: Noise, (B, C, T).
        mask: As in `pairwise_cost`; give it, so that padding does not decide.

    Returns:
        Noise of each clip, a permutation, (B,), int64.
    """
    from scipy.optimize import linear_sum_assignment

    cost = pairwise_cost(data, noise, mask=mask)
    _, columns = linear_sum_assignment(cost.double().cpu().numpy())
    return torch.as_tensor(columns, dtype=torch.int64, device=data.device)


def couple_noise(data: Tensor, noise: Tensor, *, method: str, mask: Tensor | None = None) -> Tensor:
    """Reorder noise within a batch so that it lies nearer to the clips.

    Args:
        data: Latents, (B, C, T).
        noise: Noise, (B, C, T).
        method: "sinkhorn" as the released models, "exact" or "none".
        mask: As in `pairwise_cost`.

    Returns:
        The same noises in another order; a batch of one is left alone.

    Raises:
        ValueError: If `method` is unknown.
    """
    if method not in COUPLINGS:
        raise ValueError(f"coupling must be one of {', '.join(COUPLINGS)}, got {method!r}")
    if method == "none" or len(data) < 2:
        return noise
    if method == "exact":
        return noise[exact_assignment(data, noise, mask=mask)]
    return noise[greedy_assignment(sinkhorn_plan(data, noise, mask=mask))]


def couple_across(
    data: Sequence[Tensor],
    noise: Sequence[Tensor],
    *,
    method: str,
    masks: Sequence[Tensor],
) -> list[Tensor]:
    """Couple the micro-batches of one optimizer step as the one batch that they stand for.

    A noise may go to a clip of any micro-batch, so each is as long as the longest clip of the
    step; a clip uses the beginning of it.

    Args:
        data: Latents of each micro-batch, (B_k, C, T_k).
        noise: Noise of each micro-batch, (B_k, C, T) with one T for all, at least every T_k.
        method: As in `couple_noise`.
        masks: True on real frames of each micro-batch, (B_k, T_k).

    Returns:
        Noise of each micro-batch, (B_k, C, T_k).

    Raises:
        ValueError: If the noises have not one length, or one that is too short.
    """
    lengths = {part.shape[2] for part in noise}
    longest = max(part.shape[2] for part in data)
    if len(lengths) != 1 or min(lengths) < longest:
        raise ValueError(
            f"every noise must have one length of at least {longest} frames, got {sorted(lengths)}"
        )
    num_frames = lengths.pop()
    filled = [_lengthen(part, num_frames) for part in data]
    real = [_lengthen(part, num_frames) for part in masks]
    coupled = couple_noise(
        torch.cat(filled), torch.cat(list(noise)), method=method, mask=torch.cat(real)
    )
    parts = torch.split(coupled, [len(part) for part in data])
    return [part[..., : own.shape[2]] for part, own in zip(parts, data, strict=True)]


def _lengthen(x: Tensor, num_frames: int) -> Tensor:
    """Fill up the last axis with zeros."""
    return torch.nn.functional.pad(x, (0, num_frames - x.shape[-1]))
