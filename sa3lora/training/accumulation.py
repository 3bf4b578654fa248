"""The gradients of a step's batches as one mean, where each batch counts with its clips.

A loss is never scaled before its backward pass. Where products are bfloat16, a factor that is no
power of two would round every gradient on its way otherwise, and a run would depend on how its
batches are shared out: one process that took two of them drifted from two processes with one each
(on `tiny` by 6e-4 in a loss after four steps, now by nothing). So gradients are weighed when they
have arrived, in float32, as they are between processes. (Three processes still add in another order
than one does, which float32 products do not notice, and bfloat16 ones amplify in some steps.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn

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
    if len(weights) == 1:
        [loss] = losses
        torch.autograd.backward(loss.total)
        return [loss]
    done = []
    sums: dict[nn.Parameter, Tensor] = {}
    for loss, weight in zip(losses, weights, strict=True):
        torch.autograd.backward(loss.total)
        _add_weighed(sums, parameters, weight)
        done.append(loss)
    torch._foreach_div_(list(sums.values()), sum(weights))
    for parameter, gradient in sums.items():
        parameter.grad = gradient
    return done


def _add_weighed(
    sums: dict[nn.Parameter, Tensor], parameters: Iterable[nn.Parameter], weight: float
) -> None:
    """Move gradients into sums; in the arithmetic of `ProcessGroup.average`, to give its bits."""
    found = {each: each.grad for each in parameters if each.grad is not None}
    for parameter in found:
        parameter.grad = None
    torch._foreach_mul_(list(found.values()), weight)
    both = [each for each in found if each in sums]
    if both:
        torch._foreach_add_([sums[each] for each in both], [found[each] for each in both])
    sums.update({each: gradient for each, gradient in found.items() if each not in sums})
