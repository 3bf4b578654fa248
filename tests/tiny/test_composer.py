"""Plans to notes."""

from __future__ import annotations

import numpy as np
import pytest

from sa3lora.tiny.composer import DENSITIES, Part, Plan, accent, compose, swung
from sa3lora.tiny.grid import TICK_S, snap_time
from sa3lora.tiny.theory import SCALES, Key
from sa3lora.tiny.timbres import TIMBRES

ROLES = [
    Part("flute", "melody"),
    Part("guitar", "chords"),
    Part("piano", "arpeggio"),
    Part("bass", "bass"),
    Part("drums", "drums"),
]


def _events(part, *, density="medium", duration_s=10.0, seed=0, tempo=120.0):
    plan = Plan(Key(2, "minor"), tempo, density, (part,))
    return compose(plan, np.random.default_rng(seed), duration_s=duration_s)


@pytest.mark.parametrize("part", ROLES, ids=lambda p: p.role)
@pytest.mark.parametrize("duration_s", [1.0, 2.0, 10.0, 24.0])
def test_every_note_begins_and_ends_within_the_piece(part, duration_s):
    events = _events(part, duration_s=duration_s)
    assert events
    assert events[0].onset_s == 0
    assert all(e.onset_s >= 0 and e.duration_s > 0 for e in events)
    assert all(e.onset_s + e.duration_s <= duration_s for e in events)


@pytest.mark.parametrize("part", ROLES[:4], ids=lambda p: p.role)
def test_notes_stay_in_key_and_register(part):
    scale = {(2 + step) % 12 for step in SCALES["minor"]}
    timbre = TIMBRES[part.timbre]
    for seed in range(5):
        events = _events(part, seed=seed)
        assert {int(e.pitch) % 12 for e in events} <= scale
        assert all(timbre.low <= e.pitch <= timbre.high + 12 for e in events)


@pytest.mark.parametrize("part", ROLES, ids=lambda p: p.role)
def test_busier_means_more_onsets(part):
    counts = [len({e.onset_s for e in _events(part, density=d)}) for d in DENSITIES]
    assert counts[0] < counts[1] < counts[2]


def test_onsets_lie_on_ticks_within_half_a_tick_of_the_tempo():
    for e in _events(ROLES[0], tempo=96.0, density="busy"):
        sixteenth_s = 60.0 / 96.0 / 4
        nearest_s = round(e.onset_s / sixteenth_s) * sixteenth_s
        assert abs(e.onset_s - nearest_s) <= TICK_S / 2 + 1e-9
        assert e.onset_s == snap_time(e.onset_s)


def test_a_piece_ends_on_its_tonic():
    events = _events(ROLES[0])
    assert events[-1].pitch % 12 == 2


def test_downbeats_are_stressed_and_offbeats_swing():
    assert accent(4.0) > accent(5.0) > accent(5.5)
    assert swung(1.5, 0.16) == pytest.approx(1.66)
    assert swung(1.0, 0.16) == 1.0
