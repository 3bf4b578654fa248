"""The pretraining distribution."""

from __future__ import annotations

from collections import Counter

import numpy as np

from sa3lora.tiny.arrange import describe, draw_plan
from sa3lora.tiny.theory import MAX_BPM, MIN_BPM
from sa3lora.tiny.timbres import TIMBRES


def _plans(n, **kwargs):
    return [draw_plan(np.random.default_rng(seed), **kwargs) for seed in range(n)]


def test_an_arrangement_has_two_or_three_different_instruments_in_roles_they_can_play():
    for plan in _plans(300):
        names = [part.timbre for part in plan.parts]
        assert 2 <= len(names) == len(set(names)) <= 3
        assert all(part.role in TIMBRES[part.timbre].roles for part in plan.parts)
        assert MIN_BPM <= plan.tempo_bpm <= MAX_BPM


def test_every_timbre_occurs_in_arrangements_and_in_solos():
    mixed = Counter(part.timbre for plan in _plans(300) for part in plan.parts)
    alone = Counter(plan.parts[0].timbre for plan in _plans(300, single=True))
    assert set(mixed) == set(alone) == set(TIMBRES)


def test_a_named_timbre_plays_alone():
    for plan in _plans(20, timbre="choir"):
        assert [part.timbre for part in plan.parts] == ["choir"]


def test_a_solo_tells_its_texture_and_no_genre():
    (plan,) = _plans(1, timbre="flute")
    description = describe(plan)
    assert description.texture == "melody"
    assert description.genre == ""


def test_drums_alone_have_neither_key_nor_mood():
    (plan,) = _plans(1, timbre="drums")
    assert (describe(plan).key, describe(plan).mood) == ("", "")
