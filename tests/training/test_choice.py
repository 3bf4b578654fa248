from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Generator, Tensor

from sa3lora.training.choice import Point, is_better, judge


def _point(step: int, held_out: Sequence[float], training: Sequence[float] = (0.0, 0.0)) -> Point:
    return Point(step, tuple(held_out), tuple(training))


def _points(held_out: Tensor, training: Tensor) -> list[Point]:
    """Rows are validations."""
    return [
        Point(10 * (n + 1), tuple(held.tolist()), tuple(trained.tolist()))
        for n, (held, trained) in enumerate(zip(held_out, training, strict=True))
    ]


def test_nothing_is_chosen_before_the_first_validation() -> None:
    verdict = judge([])
    assert (verdict.chosen, verdict.overfits_since, verdict.waited) == (None, None, 0)


def test_a_step_that_gains_on_some_tracks_and_loses_on_others_does_not_win() -> None:
    first = _point(10, (-0.1, -0.1, -0.1))
    lucky = _point(20, (-0.4, -0.05, -0.05))  # mean gain 0.067, its standard error 0.12
    steady = _point(30, (-0.12, -0.13, -0.12))
    assert not is_better(lucky, first)
    assert is_better(steady, first)
    assert judge([first, lucky, steady]).chosen is steady


def test_slow_progress_wins_once_it_adds_up() -> None:
    spread = torch.tensor([0.0, 0.03, -0.03])
    points = [_point(0, (0.0, 0.0, 0.0))]
    for n in range(1, 7):  # each step gains 0.005, its standard error is 0.017
        points.append(_point(n, (-0.005 * n + spread).tolist()))
    assert [judge(points[: n + 1]).chosen.step for n in range(7)] == [0, 0, 0, 0, 4, 5, 6]  # type: ignore[union-attr]


def test_of_equals_the_earlier_step_stays() -> None:
    points = [_point(step, (-0.1, -0.2)) for step in (10, 20, 30)]
    verdict = judge(points)
    assert verdict.chosen is points[0]
    assert verdict.waited == 2


def test_a_lost_step_is_passed_over() -> None:
    points = [
        Point(10, (-0.5, -0.5), (0.0, 0.0), lost=True),
        _point(20, (-0.1, -0.1)),
        _point(30, (0.0, 0.0)),
    ]
    assert judge(points).chosen is points[1]


def test_one_held_out_track_decides_by_its_plain_loss_and_flags_nothing() -> None:
    points = [_point(n, (loss,), (-0.1 * n, -0.1 * n)) for n, loss in ((1, 0.0), (2, -0.1), (3, 1))]
    verdict = judge(points)
    assert verdict.chosen is points[1]
    assert verdict.gap is not None
    assert verdict.gap.low is None
    assert verdict.overfits_since is None


def _learning_by_heart(noise: float = 0.01) -> list[Point]:
    """Held-out tracks gain until the third of eight validations, training tracks all the way."""
    generator = Generator().manual_seed(1)
    steps = torch.arange(1, 9, dtype=torch.float64)[:, None]
    held_out = -0.1 * steps.clamp(max=3) + 0.05 * (steps - 3).clamp(min=0)
    held_out = held_out + noise * torch.randn(8, 3, generator=generator, dtype=torch.float64)
    training = -0.1 * steps + noise * torch.randn(8, 4, generator=generator, dtype=torch.float64)
    return _points(held_out, training)


def test_learning_by_heart_is_flagged_after_the_chosen_step_and_only_the_second_time() -> None:
    points = _learning_by_heart()
    flags = [judge(points[: n + 1]).overfits_since for n in range(len(points))]
    verdict = judge(points)
    assert verdict.chosen is points[2]
    assert flags[:4] == [None] * 4
    assert flags[4:] == [40] * 4
    assert verdict.growth is not None
    assert verdict.growth.value == pytest.approx(0.75, abs=0.05)


def test_a_better_step_after_all_withdraws_the_flag() -> None:
    points = _learning_by_heart()
    better = _point(90, (-1.0, -1.0, -1.0), (-1.0, -1.0, -1.0, -1.0))
    verdict = judge([*points, better])
    assert verdict.chosen is better
    assert (verdict.overfits_since, verdict.waited) == (None, 0)


def test_slow_progress_is_no_overfitting() -> None:
    kept = _point(10, (-0.2, -0.21, -0.19), (-0.2, -0.21, -0.22))
    later = [
        _point(step, (-0.2 - gain, -0.2, -0.19), (-0.5, -0.52, -0.53))
        for step, gain in ((20, 0.012), (30, 0.015), (40, 0.02))
    ]
    verdict = judge([kept, *later])
    assert verdict.chosen is kept
    assert verdict.gap is not None
    assert verdict.growth is not None
    assert verdict.gap.is_real
    assert verdict.growth.is_real
    assert verdict.overfits_since is None


def test_one_bad_validation_is_no_overfitting() -> None:
    points = _learning_by_heart()[:3]
    bad = _point(40, (0.5, 0.5, 0.52), (-0.4, -0.4, -0.4, -0.41))
    good = _point(50, points[-1].held_out, points[-1].training)
    assert judge([*points, bad, good]).overfits_since is None


@pytest.mark.parametrize(("held_out", "training"), [(2, 3), (3, 12)])
def test_runs_that_do_not_overfit_are_seldom_flagged(held_out: int, training: int) -> None:
    # All tracks are of one kind: each has an ease of its own and wanders as training goes on.
    generator = Generator().manual_seed(0)
    num_validations, flagged, num_runs = 12, 0, 100
    learned = -6 * (1 - torch.exp(-torch.arange(1, num_validations + 1) / 5))[:, None]
    for _ in range(num_runs):
        tracks = []
        for count in (held_out, training):
            wander = torch.randn(num_validations, count, generator=generator).cumsum(dim=0)
            ease = learned * 0.2 * torch.randn(1, count, generator=generator)
            jitter = 0.3 * torch.randn(num_validations, count, generator=generator)
            tracks.append(learned + ease + 0.5 * wander + jitter)
        points = _points(*tracks)
        ever = any(
            judge(points[: n + 1]).overfits_since is not None for n in range(num_validations)
        )
        flagged += ever
    assert flagged / num_runs <= 0.05
