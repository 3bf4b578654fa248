"""Building blocks of the synthesiser."""

from __future__ import annotations

import numpy as np

from sa3lora.tiny.oscillators import (
    envelope,
    harmonic_numbers,
    harmonic_sum,
    lowpassed_noise,
    partials,
    phase,
    time_axis,
)

RATE = 16000


def _level(signal, hz):
    t = np.arange(signal.size) / RATE
    return 2 * abs(np.mean(signal * np.exp(-2j * np.pi * hz * t)))


def test_a_harmonic_sum_has_the_amplitudes_that_were_asked_for():
    tone = harmonic_sum(phase(250.0, time_axis(RATE, RATE)), [0.5, 0.0, 0.25], radius=1.0)
    levels = [_level(tone, hz) for hz in (250, 500, 750, 1000)]
    np.testing.assert_allclose(levels, [0.5, 0.0, 0.25, 0.0], atol=1e-3)


def test_a_smaller_radius_dulls_the_tone():
    angle = phase(250.0, time_axis(RATE, RATE))
    bright, dull = (harmonic_sum(angle, [1.0] * 8, radius=r) for r in (1.0, 0.5))
    assert _level(dull, 2000) / _level(dull, 250) < 0.02
    assert _level(bright, 2000) / _level(bright, 250) > 0.98


def test_no_harmonic_reaches_half_the_sample_rate():
    for hz in (30.0, 440.0, 3000.0, 7000.0):
        assert harmonic_numbers(hz, RATE)[-1] * hz < RATE / 2


def test_partials_above_the_band_are_left_out():
    t = time_axis(1000, RATE)
    args = {"amplitudes": (1.0, 1.0), "decays": (0.0, 0.0), "sample_rate": RATE}
    both = partials(1000.0, t, ratios=(1.0, 9.0), **args)
    np.testing.assert_array_equal(both, partials(1000.0, t, ratios=(1.0, 20.0), **args))


def test_an_envelope_starts_and_ends_at_zero():
    t = time_axis(RATE, RATE)
    env = envelope(t, 0.5, attack_s=0.01, release_s=0.4)
    assert env[0] == 0
    assert env[round(0.3 * RATE)] == 1
    assert np.all(env[round(0.91 * RATE) :] == 0)


def test_vibrato_keeps_the_mean_pitch():
    t = time_axis(4 * RATE, RATE)
    angle = np.unwrap(phase(437.5, t, vibrato_cents=30.0).astype(np.float64))
    assert abs(angle[-1] / (2 * np.pi * 4) / 437.5 - 1) < 0.005


def test_smoothed_noise_keeps_its_variance():
    for smooth in (1, 12):
        noise = lowpassed_noise(50_000, np.random.default_rng(0), smooth=smooth)
        assert noise.shape == (50_000,)
        assert 0.9 < noise.std() < 1.1
