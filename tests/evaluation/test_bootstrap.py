from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from sa3lora.evaluation.bootstrap import (
    Estimate,
    interval_from_replicates,
    mean_estimate,
    resample_counts,
    student_widening,
)


def test_every_replicate_draws_as_many_tracks_as_there_are() -> None:
    counts = resample_counts(7, replicates=50, generator=torch.Generator().manual_seed(1))
    assert counts.shape == (50, 7)
    assert torch.equal(counts.sum(dim=1), torch.full((50,), 7))


def test_the_same_seed_gives_the_same_interval() -> None:
    values = torch.arange(12.0)
    assert mean_estimate(values, seed=3) == mean_estimate(values, seed=3)
    assert mean_estimate(values, seed=3) != mean_estimate(values, seed=4)


@pytest.mark.parametrize(
    ("num_tracks", "student"),
    # Two-sided 95 % quantiles of Student's t for n - 1 degrees of freedom, printed tables.
    [(5, 2.776), (9, 2.306), (31, 2.042)],
)
def test_few_tracks_widen_the_interval_to_students(num_tracks: int, student: float) -> None:
    expected = student / 1.959964 * math.sqrt(num_tracks / (num_tracks - 1))
    assert student_widening(num_tracks) == pytest.approx(expected, rel=0.01)


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(300):
        estimate = mean_estimate(
            torch.randn(10, generator=generator) + 5, replicates=400, seed=seed
        )
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= 5 <= estimate.high
    assert 0.91 <= covered / 300 <= 0.99


def test_one_track_gives_no_interval_and_tells_nothing_apart() -> None:
    estimate = mean_estimate(torch.tensor([3.0]))
    assert estimate == Estimate(3.0, None, None, 1)
    assert not estimate.tells_apart


def test_the_interval_stays_around_the_score_when_resampling_is_biased() -> None:
    biased = torch.linspace(9.0, 11.0, 101)  # every replicate lies above the score
    estimate = interval_from_replicates(5.0, biased, num_tracks=20)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < 5.0 < estimate.high


def test_an_interval_with_zero_inside_tells_nothing_apart() -> None:
    assert not Estimate(0.4, -0.1, 0.9, 8).tells_apart
    assert Estimate(0.4, 0.1, 0.9, 8).tells_apart
    assert Estimate(-0.4, -0.9, -0.1, 8).tells_apart


def test_no_tracks_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 track, got none"):
        mean_estimate(torch.zeros(0))


def test_paired_values_give_a_narrower_interval_than_either_side() -> None:
    generator = torch.Generator().manual_seed(5)
    base = 10 * torch.randn(20, generator=generator)
    adapter = base + 0.5 + 0.01 * torch.randn(20, generator=generator)
    paired = mean_estimate(adapter - base)
    assert paired.tells_apart
    assert not mean_estimate(base).tells_apart
    assert_close(paired.value, 0.5, atol=0.02, rtol=0)
