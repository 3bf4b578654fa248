from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sa3lora.evaluation.frechet import (
    extrapolate_to_infinity,
    fit_gaussian,
    frechet_distance,
    frechet_estimate,
    gaussian_from_moments,
)


def cloud(n: int, size: int, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(n, size, generator=generator, dtype=torch.float64) @ mix


def distance(first: Tensor, second: Tensor) -> float:
    return frechet_distance(fit_gaussian(first), fit_gaussian(second))


@pytest.mark.parametrize("n", [5, 12, 13, 40, 400])
def test_a_set_with_itself_is_at_distance_0(n: int) -> None:
    x = cloud(n, 12, seed=n)
    assert distance(x, x) == pytest.approx(0, abs=1e-10 * x.var(dim=0).sum().item())


@pytest.mark.parametrize("n", [6, 100])
def test_shifting_by_d_adds_its_square(n: int) -> None:
    x, d = cloud(n, 12, seed=1), torch.linspace(-1, 2, 12, dtype=torch.float64)
    assert distance(x, x + d) == pytest.approx(d.pow(2).sum().item(), rel=1e-9)


@pytest.mark.parametrize("sizes", [(5, 9), (5, 90), (80, 90)])
def test_a_rotation_of_both_changes_nothing(sizes: tuple[int, int]) -> None:
    x, y = cloud(sizes[0], 12, seed=1), cloud(sizes[1], 12, seed=2)
    turn = torch.linalg.qr(cloud(12, 12, seed=3)).Q
    assert distance(x @ turn, y @ turn) == pytest.approx(distance(x, y), rel=1e-10)


def test_the_order_of_the_sets_changes_nothing() -> None:
    x, y = cloud(20, 12, seed=1), cloud(70, 12, seed=2)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-10)


def test_diagonal_gaussians_follow_the_closed_form() -> None:
    first, second = torch.tensor([4.0, 1.0, 9.0]), torch.tensor([1.0, 0.25, 16.0])
    means = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([0.0, 3.0, -2.0])
    expected = (
        1 + 9 + sum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in zip(first, second, strict=True))
    )
    got = frechet_distance(
        gaussian_from_moments(means[0], torch.diag(first), num_samples=10),
        gaussian_from_moments(means[1], torch.diag(second), num_samples=10),
    )
    assert got == pytest.approx(expected, rel=1e-12)


def test_moments_and_samples_agree() -> None:
    x, y = cloud(50, 12, seed=1), cloud(8, 12, seed=2)
    from_moments = [
        gaussian_from_moments(s.mean(dim=0), torch.cov(s.T), num_samples=len(s)) for s in (x, y)
    ]
    assert frechet_distance(*from_moments) == pytest.approx(distance(x, y), rel=1e-6)


def test_fewer_samples_than_dimensions_give_a_finite_score_and_say_so() -> None:
    x, y = cloud(4, 64, seed=1), cloud(9, 64, seed=2)
    assert math.isfinite(distance(x, y))
    assert distance(x, y) > 0
    assert fit_gaussian(x).is_singular
    assert not fit_gaussian(cloud(65, 64, seed=1)).is_singular


def test_a_constant_set_is_a_point() -> None:
    point, x = torch.ones(5, 3), cloud(30, 3, seed=1)
    expected = (x.mean(dim=0) - 1).pow(2).sum() + torch.cov(x.T).trace()
    assert distance(point, x) == pytest.approx(expected.item(), rel=1e-10)


def test_counting_a_sample_twice_equals_repeating_it() -> None:
    x = cloud(6, 4, seed=1)
    counts = torch.tensor([2, 0, 1, 1, 3, 1])
    weighted, repeated = (
        fit_gaussian(x, weights=counts),
        fit_gaussian(x.repeat_interleave(counts, 0)),
    )
    assert weighted.num_samples == repeated.num_samples == 8
    assert_close(weighted.mean, repeated.mean)
    assert_close(weighted.factor.T @ weighted.factor, repeated.factor.T @ repeated.factor)


def test_half_precision_embeddings_are_scored_in_float64() -> None:
    x = (1000 + torch.randn(40, 4, generator=torch.Generator().manual_seed(0))).half()
    assert distance(x, x.double() + 0.5) == pytest.approx(1.0, rel=1e-9)


def test_a_single_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        fit_gaussian(torch.zeros(1, 3))


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        fit_gaussian(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))


def test_the_interval_holds_the_score_and_counts_tracks_not_windows() -> None:
    x, y = cloud(40, 4, seed=1), cloud(60, 4, seed=2)
    tracks, others = torch.arange(40) // 4, torch.arange(60) // 10
    estimate = frechet_estimate(x, y, tracks=tracks, reference_tracks=others, replicates=50)
    assert estimate.value == pytest.approx(distance(x, y), rel=1e-12)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < estimate.value < estimate.high
    assert estimate.num_tracks == 6


def test_windows_that_repeat_their_track_do_not_narrow_the_interval() -> None:
    x, y = cloud(12, 3, seed=1), cloud(200, 3, seed=2)
    copies = x.repeat_interleave(5, dim=0)
    others = torch.arange(200)
    once = frechet_estimate(x, y, tracks=torch.arange(12), reference_tracks=others, replicates=100)
    many = frechet_estimate(
        copies, y, tracks=torch.arange(60) // 5, reference_tracks=others, replicates=100
    )
    assert once.low is not None
    assert once.high is not None
    assert many.low is not None
    assert many.high is not None
    assert many.high - many.low > 0.8 * (once.high - once.low)


def test_extrapolation_removes_most_of_the_bias_of_few_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 16, generator=generator)
    y = torch.randn(20_000, 16, generator=generator)
    biased = distance(x, y)
    line = extrapolate_to_infinity(x, y, tracks=torch.arange(200))
    assert line is not None
    assert abs(line.value) < 0.4 * biased  # the truth is 0
    assert line.r_squared > 0.8
    assert line.num_windows[-1] == 200
    assert line.distances[-1] == pytest.approx(biased)


def test_fewer_than_8_tracks_are_not_extrapolated() -> None:
    x = cloud(70, 3, seed=1)
    assert extrapolate_to_infinity(x, x, tracks=torch.arange(70) // 10) is None
