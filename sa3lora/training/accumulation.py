"""The gradients of a step's batches as one mean, where each batch counts with its clips.

A loss is never scaled before its backward pass. Where products are bfloat16, a factor that is no
power of two would round every gradient on its way otherwise, and a run would depend on how its
batches are shared out: one process that took two of them drifted from two processes with one each
(on `tiny` by 6e-4 in a loss after four steps, now by nothing). So gradients are weighed when they
have arrived, in float32, as they are between processes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import nn

from sa3lora.probe import StepLoss


def backward_mean(
    losses: Iterable[StepLoss], *, weights: Sequence[float], parameters: Collection[nn.Parameter]
) -> list[StepLoss]:
    """Leave in the parameters the weighted mean of the gradients of some losses.

    Args:
        losses: Each is asked for when the graph of the one before is gone.
        weights: How much each counts, more than 0.
        parameters: Without gradients so far.

    Returns:
        The losses.
    """
    done = []
    before = 0.0
    for loss, weight in zip(losses, weights, strict=True):
        # what is there is the sum so far over the weight of the last one
        _scale(parameters, before / weight)
        torch.autograd.backward(loss.total)
        before = weight
        done.append(loss)
    _scale(parameters, before / sum(weights))
    return done


def _scale(parameters: Iterable[nn.Parameter], factor: float) -> None:
    gradients = [each.grad for each in parameters if each.grad is not None]
    if gradients and factor != 1.0:
        torch._foreach_mul_(gradients, factor)
