from __future__ import annotations

import pytest
import torch
from torch import nn

from sa3lora.errors import DivergenceError
from sa3lora.training.optim import LearningRate, Update, clip_gradients


def _rate(schedule: str, *, warmup_steps: int = 0, max_steps: int = 100) -> LearningRate:
    return LearningRate(1.0, schedule, warmup_steps, max_steps)


def test_constant_stays() -> None:
    assert {_rate("constant").at(step) for step in (0, 50, 99)} == {1.0}


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    rate = _rate("constant", warmup_steps=4)
    assert [rate.at(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_starts_at_the_peak_and_ends_at_zero() -> None:
    rate = _rate("cosine", warmup_steps=10)
    assert rate.at(10) == 1.0
    assert rate.at(55) == pytest.approx(0.5)
    assert rate.at(100) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("step", "share"),
    # 0.5 % at k = 0, 39.7 % at 100, 91.9 % at 500, 99.3 % at 1000: the released templates.
    [(0, 0.005), (100, 0.397), (500, 0.919), (1000, 0.993)],
)
def test_inverse_follows_the_released_templates(step: int, share: float) -> None:
    assert _rate("inverse").at(step) == pytest.approx(share, abs=5e-4)


def test_linear_falls_evenly_to_the_floor() -> None:
    rate = LearningRate(1.0, "linear", 10, 110, floor=0.2)
    assert [rate.at(step) for step in (10, 60, 110)] == pytest.approx([1.0, 0.6, 0.2])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "inverse"])
def test_a_schedule_never_falls_below_its_floor_but_warms_up_from_nothing(schedule: str) -> None:
    rate = LearningRate(1.0, schedule, 4, 4_000, floor=0.25)
    last = LearningRate(1.0, schedule, 4, 4_000).at(40_000_000)
    assert last < 0.25
    assert rate.at(40_000_000) == pytest.approx(0.25)
    assert rate.at(0) < 0.26  # a quarter of the peak, or less where inverse warms up itself


def test_clipping_scales_to_the_norm_and_reports_the_one_before() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert float(clip_gradients([parameter], 1.0)) == pytest.approx(5.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]))
    assert float(clip_gradients([parameter], None)) == pytest.approx(1.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]))


def test_a_step_on_what_is_no_number_is_refused_by_its_number() -> None:
    Update(step=3, grad_norm=torch.tensor(2.0), lr=0.1).require_finite()
    with pytest.raises(DivergenceError, match="Step 4: the norm of the gradients is inf") as raised:
        Update(step=4, grad_norm=torch.tensor(torch.inf), lr=0.1).require_finite()
    assert raised.value.step == 4
