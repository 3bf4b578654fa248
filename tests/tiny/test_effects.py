"""Effects of the left-out styles."""

from __future__ import annotations

import numpy as np

from sa3lora.tiny import effects

RATE = 16000


def _sine(hz, seconds=1.0):
    t = np.arange(round(seconds * RATE)) / RATE
    return np.tile(np.sin(2 * np.pi * hz * t).astype(np.float32), (2, 1))


def test_a_lowpass_keeps_lows_and_takes_highs():
    assert effects.lowpass(_sine(100), 1000.0, sample_rate=RATE).std() > 0.65
    assert effects.lowpass(_sine(6000), 1000.0, sample_rate=RATE).std() < 0.01


def test_a_lowpass_moves_no_phase():
    tone = _sine(500)
    dulled = effects.lowpass(tone, 1000.0, sample_rate=RATE)[:, 2000:-2000]
    assert np.corrcoef(dulled[0], tone[0, 2000:-2000])[0, 1] > 0.99999


def test_hiss_has_the_level_asked_for():
    noisy = effects.hiss(_sine(440), np.random.default_rng(0), level_db=-40.0)
    assert abs(20 * np.log10((noisy - _sine(440)).std()) + 40) < 0.5


def test_crushing_leaves_few_levels():
    assert len(np.unique(effects.crush(_sine(440), bits=4, hold=2))) <= 17


def test_echoes_change_sides_and_fade():
    click = np.zeros((2, RATE), dtype=np.float32)
    click[0, 0] = 1.0
    out = effects.ping_pong(click, delay_s=0.25, feedback=0.5, cutoff_hz=4000.0, sample_rate=RATE)
    first, second = out[:, 4000:6000], out[:, 8000:10000]
    assert np.abs(first[1]).max() > 5 * np.abs(first[0]).max()
    assert np.abs(second[0]).max() > 5 * np.abs(second[1]).max()
    assert np.abs(second).max() < np.abs(first).max()


def test_pulsing_swells_from_quiet_to_full():
    out = effects.pulse(np.ones((2, RATE), np.float32), rate_hz=1.0, depth=0.8, sample_rate=RATE)
    np.testing.assert_allclose([out.min(), out.max()], [0.2, 1.0], atol=1e-3)
