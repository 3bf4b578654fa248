from __future__ import annotations

import math

import pytest
import torch

from sa3lora.flow import interpolate, min_snr_weight

_T = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0])
def test_weighted_velocity_error_is_the_clamped_snr_times_the_error_of_the_data(gamma: float):
    generator = torch.Generator().manual_seed(0)
    data, noise, wrong = torch.randn(3, 99, 4, 8, generator=generator, dtype=torch.float64)
    t = _T[1:-1]
    x = interpolate(data, noise, t)
    estimate = x - t[:, None, None] * wrong
    of_data = (estimate - data).square().sum(dim=(1, 2))
    of_velocity = (wrong - (noise - data)).square().sum(dim=(1, 2))
    snr = ((1 - t) / t).square()
    expected = snr.clamp(max=gamma) * of_data
    torch.testing.assert_close(min_snr_weight(t, gamma) * of_velocity, expected)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_the_weight_peaks_where_the_snr_is_gamma_and_is_nothing_at_both_ends(gamma: float):
    peak = torch.tensor(1 / (1 + math.sqrt(gamma)), dtype=torch.float64)
    assert float(min_snr_weight(peak, gamma)) == pytest.approx(gamma / (1 + math.sqrt(gamma)) ** 2)
    weights = min_snr_weight(_T, gamma)
    assert float(weights.max()) <= float(min_snr_weight(peak, gamma))
    assert weights[0] == weights[-1] == 0


def test_a_limit_that_is_no_ratio_is_refused():
    with pytest.raises(ValueError, match=r"gamma must be above 0, got 0"):
        min_snr_weight(_T, 0.0)
