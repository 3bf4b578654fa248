from __future__ import annotations

import pytest
import torch
from scipy.stats import ttest_ind
from torch import Generator

from sa3lora.probe import gap_between


def test_the_interval_is_welch_s() -> None:
    generator = Generator().manual_seed(3)
    held_out, training = (
        torch.randn(4, generator=generator),
        torch.randn(9, generator=generator) * 3,
    )
    found = gap_between(held_out, training)
    reference = ttest_ind(held_out.numpy(), training.numpy(), equal_var=False)
    low, high = reference.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.value == pytest.approx(float(held_out.mean() - training.mean()))


@pytest.mark.parametrize(("held_out", "training"), [(3, 3), (3, 12), (6, 30)])
def test_the_interval_covers_the_truth_as_often_as_it_says(held_out: int, training: int) -> None:
    generator = Generator().manual_seed(0)
    covered = 0
    for _ in range(1000):
        # Training tracks vary less where they are learned by heart.
        gap = gap_between(
            0.2 + torch.randn(held_out, generator=generator),
            0.5 * torch.randn(training, generator=generator),
        )
        assert gap.low is not None
        assert gap.high is not None
        covered += gap.low <= 0.2 <= gap.high
    assert 925 <= covered <= 975


def test_one_track_on_a_side_gives_no_interval_and_so_nothing_is_real() -> None:
    gap = gap_between(torch.tensor([5.0]), torch.tensor([0.0, 0.1]))
    assert (gap.value, gap.low, gap.high) == (pytest.approx(4.95), None, None)
    assert not gap.is_real
    assert "too few tracks" in str(gap)


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(ValueError, match="0 held-out and 2 training"):
        gap_between(torch.zeros(0), torch.zeros(2))
