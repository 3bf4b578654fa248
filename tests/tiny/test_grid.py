"""The grid of ticks and periods."""

from __future__ import annotations

import numpy as np
import pytest

from sa3lora.tiny.composer import Event, Part
from sa3lora.tiny.grid import PERIOD_S, TICK_S, place_in_period, snap_hz, snap_time
from sa3lora.tiny.render import mix


def test_a_moment_moves_by_at_most_half_a_tick() -> None:
    for moment in (0.0, 0.011, 0.013, 1.2345):
        assert abs(snap_time(moment) - moment) <= TICK_S / 2 + 1e-12
        assert snap_time(moment) / TICK_S == pytest.approx(round(moment / TICK_S))


def test_a_frequency_has_whole_cycles_a_period() -> None:
    for hz in (0.1, 82.4, 440.0, 3951.0):
        cycles = snap_hz(hz) * PERIOD_S
        assert cycles == pytest.approx(max(1, round(cycles)))
        assert hz < 1 or abs(snap_hz(hz) - hz) <= 0.5 / PERIOD_S + 1e-9


def test_places_repeat_every_period() -> None:
    assert place_in_period(0.0) == place_in_period(PERIOD_S) == 0.0
    assert place_in_period(5 * PERIOD_S + 3 * TICK_S) == pytest.approx(3 * TICK_S)


def test_a_held_tone_looks_the_same_in_every_period() -> None:
    events = [Event(7 * TICK_S, 3.0, 66.3, 0.8, 0)]
    part = Part("organ", "melody")
    audio = mix(events, [part], duration_s=3.0, sample_rate=16000)
    length = round(PERIOD_S * 16000)
    first, second = audio[:, 3 * length : 4 * length], audio[:, 9 * length : 10 * length]
    np.testing.assert_allclose(first, second, atol=0.01)  # times are float32
    assert np.abs(first).max() > 0.1
