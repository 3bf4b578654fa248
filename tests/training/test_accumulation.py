from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Generator, Tensor, nn

from sa3lora.probe import StepLoss
from sa3lora.training.accumulation import backward_mean

_CLIPS = (3, 1, 4)


def _loss(total: Tensor) -> StepLoss:
    none = torch.zeros(1)
    return StepLoss(
        total=total, signal=none, context=none, per_item=none, t=none, num_frames=1, num_slots=1
    )


def _network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(24, 24) for _ in range(6)))


def _total(network: nn.Module, number: int, dtype: torch.dtype) -> Tensor:
    batch = torch.randn(5, 24, generator=Generator().manual_seed(number))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out: Tensor = network(batch)
    return out.float().pow(2).mean()


def _expected(dtype: torch.dtype) -> list[Tensor]:
    """Weigh the gradients of each batch alone."""
    sums = [torch.zeros_like(p) for p in _network().parameters()]
    for number, clips in enumerate(_CLIPS):
        network = _network()
        _total(network, number, dtype).backward()  # type: ignore[no-untyped-call]
        for each, p in zip(sums, network.parameters(), strict=True):
            assert p.grad is not None
            each += p.grad * clips / sum(_CLIPS)
    return sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_mean_of_those_of_each_batch_alone(dtype: torch.dtype) -> None:
    network = _network()
    losses = (_loss(_total(network, number, dtype)) for number in range(len(_CLIPS)))
    backward_mean(losses, weights=_CLIPS, parameters=list(network.parameters()))
    for p, expected in zip(network.parameters(), _expected(dtype), strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-5, atol=1e-8)


def test_a_parameter_that_only_a_later_batch_reaches_counts_with_it_alone() -> None:
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    losses = [_loss(first.sum()), _loss((first + 2 * second).sum())]
    done = backward_mean(losses, weights=[1, 3], parameters=[first, second])
    assert done == losses
    assert (first.grad, second.grad) == (torch.tensor([1.0]), torch.tensor([1.5]))


def test_the_graph_of_a_batch_is_gone_before_the_next_is_asked_for() -> None:
    weight = nn.Parameter(torch.ones(1))

    def losses() -> Iterator[StepLoss]:
        for number in (1.0, 2.0):
            total = (weight * weight).sum() * number
            yield _loss(total)
            with pytest.raises(RuntimeError, match="second time"):
                total.backward()  # type: ignore[no-untyped-call]

    backward_mean(losses(), weights=[1, 1], parameters=[weight])
    assert weight.grad == torch.tensor([3.0])
