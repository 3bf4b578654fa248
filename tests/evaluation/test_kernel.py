from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sa3lora.evaluation.kernel import (
    KAD_SCALE,
    gaussian_gram,
    kernel_audio_distance,
    kernel_replicates,
    median_bandwidth,
)


def cloud(n: int, *, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator, dtype=torch.float64) + shift


def test_two_points_a_side_follow_the_formula() -> None:
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    kernel = {d: math.exp(-(d**2) / (2 * 2.0**2)) for d in (0, 1, 2)}  # bandwidth: median = 2
    cross = (kernel[0] + kernel[2] + kernel[1] + kernel[1]) / 4
    expected = KAD_SCALE * (kernel[1] + kernel[2] - 2 * cross)
    assert kernel_audio_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_sets_of_the_same_kind_average_to_0() -> None:
    values = [
        kernel_audio_distance(cloud(15, seed=2 * s), cloud(25, seed=2 * s + 1)) for s in range(200)
    ]
    mean = torch.tensor(values)
    assert abs(mean.mean()) < 3 * mean.std() / math.sqrt(200)
    assert mean.min() < 0  # unbiased, so it is not cut off at 0


def test_a_shift_is_seen() -> None:
    near = kernel_audio_distance(cloud(60, seed=1), cloud(60, seed=2))
    far = kernel_audio_distance(cloud(60, seed=1, shift=1.0), cloud(60, seed=2))
    assert far > 10 * abs(near)


def test_a_rotation_and_a_common_scale_change_nothing() -> None:
    x, y = cloud(20, seed=1, shift=0.5), cloud(30, seed=2)
    turn = 7.0 * torch.linalg.qr(cloud(6, seed=3)).Q
    assert kernel_audio_distance(x @ turn, y @ turn) == pytest.approx(
        kernel_audio_distance(x, y), rel=1e-9
    )


def test_near_neighbours_keep_their_distance() -> None:
    x = torch.full((1, 4), 1e4, dtype=torch.float64)
    gram = gaussian_gram(x, x + 1e-3, bandwidth=1e-3)
    assert_close(gram.item(), math.exp(-2.0), rtol=1e-6, atol=0)


def test_counting_everything_once_is_the_score_itself() -> None:
    x, y = cloud(8, seed=1), cloud(9, seed=2)
    ones = torch.ones(3, 8), torch.ones(3, 9)
    replicates = kernel_replicates(x, ones[0], reference=y, reference_counts=ones[1])
    assert_close(replicates, torch.full((3,), kernel_audio_distance(x, y), dtype=torch.float64))


def test_a_sample_and_its_own_copy_are_no_pair() -> None:
    x, y = cloud(3, seed=1), cloud(9, seed=2)
    twice = kernel_replicates(
        x, torch.tensor([[2, 2, 2]]), reference=y, reference_counts=torch.ones(1, 9)
    )
    assert twice.item() == pytest.approx(kernel_audio_distance(x, y), rel=1e-12)


def test_a_replicate_of_one_sample_has_no_score() -> None:
    x, y = cloud(3, seed=1), cloud(9, seed=2)
    alone = kernel_replicates(
        x, torch.tensor([[3, 0, 0]]), reference=y, reference_counts=torch.ones(1, 9)
    )
    assert alone.isnan().all()


def test_a_reference_that_does_not_vary_is_refused() -> None:
    with pytest.raises(ValueError, match="must vary"):
        median_bandwidth(torch.ones(5, 3))
    with pytest.raises(ValueError, match="at least 2 reference samples, got 1"):
        median_bandwidth(torch.ones(1, 3))
