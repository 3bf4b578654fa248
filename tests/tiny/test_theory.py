"""Keys, chords and registers."""

from __future__ import annotations

import pytest

from sa3lora.tiny.theory import COMMON_BPM, MAX_BPM, MIN_BPM, Key, into_register, midi_to_hz


def test_concert_a_is_440_hz_and_an_octave_doubles():
    assert midi_to_hz(69) == 440.0
    assert midi_to_hz(81) == pytest.approx(880.0)


def test_a_key_knows_its_name_and_its_scale():
    key = Key(2, "minor")
    assert key.name == "D minor"
    assert [key.pitch(d) - key.pitch(0) for d in range(8)] == [0, 2, 3, 5, 7, 8, 10, 12]
    assert key.pitch(-1) == key.pitch(6) - 12


def test_the_tonic_chord_is_a_triad_of_its_mode():
    for mode, third in (("major", 4), ("minor", 3)):
        key = Key(0, mode)
        pitches = [key.pitch(d) - key.pitch(0) for d in key.chord(0)]
        assert pitches == [0, third, 7]


@pytest.mark.parametrize("pitch", [20, 59, 60, 71, 72, 110])
def test_a_register_keeps_the_pitch_class(pitch):
    moved = into_register(pitch, 60, 72)
    assert 60 <= moved <= 72
    assert (moved - pitch) % 12 == 0


def test_any_tempo_lies_within_8_percent_of_a_common_one():
    for bpm in range(MIN_BPM, MAX_BPM + 1):
        assert min(abs(common / bpm - 1) for common in COMMON_BPM) <= 0.08
