"""Events to sound."""

from __future__ import annotations

import numpy as np
import pytest

from sa3lora.tiny.composer import Event, Part
from sa3lora.tiny.render import finish, mix, pan_gains, room

RATE = 16000


def _mix(events, *parts):
    return mix(events, parts, duration_s=2.0, sample_rate=RATE)


def test_panning_keeps_the_power():
    for pan in (-1.0, -0.3, 0.0, 1.0):
        assert (pan_gains(pan) ** 2).sum() == pytest.approx(2.0)
    left = _mix([Event(0.0, 0.5, 69, 1.0, 0)], Part("flute", "melody", -1.0))
    assert np.abs(left[1]).max() < 1e-6 < np.abs(left[0]).max()


def test_a_note_is_silent_before_its_onset():
    audio = _mix([Event(1.0, 0.5, 69, 1.0, 0)], Part("marimba", "melody"))
    assert audio.shape == (2, 2 * RATE)
    assert not audio[:, :RATE].any()
    assert audio[:, RATE : RATE + 800].any()


def test_quiet_and_loud_timbres_are_balanced():
    events = [Event(i / 4, 0.2, 69, 1.0, 0) for i in range(8)]
    levels = [
        _mix(events, Part(name, "melody")).std() for name in ("flute", "accordion", "marimba")
    ]
    assert max(levels) < 2.5 * min(levels)


def test_a_hall_rings_on_and_a_dry_room_does_not():
    click = np.zeros((2, RATE), dtype=np.float32)
    click[:, 100] = 1.0
    assert room(click, "dry", sample_rate=RATE) is click
    wet = room(click, "hall", sample_rate=RATE)
    assert wet.shape == click.shape
    assert np.abs(wet[:, 8000:]).max() > 0


def test_finishing_sets_the_peak_and_ends_in_silence():
    audio = finish(np.ones((2, RATE), dtype=np.float32), peak_db=-6.0, sample_rate=RATE)
    assert np.abs(audio).max() == pytest.approx(10 ** (-6 / 20))
    assert not audio[:, -1].any()
