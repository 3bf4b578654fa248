"""The instruments."""

from __future__ import annotations

import numpy as np
import pytest

from sa3lora.tiny.grid import PERIOD_S, TICK_S
from sa3lora.tiny.theory import midi_to_hz
from sa3lora.tiny.timbres import PROMPT_TIMBRES, TIMBRES, render_tone

PITCHED = [name for name in TIMBRES if name != "drums"]


def _tone(name, pitch, *, start_s=0.0, velocity=0.8):
    return render_tone(
        TIMBRES[name],
        midi_to_hz(pitch),
        held_s=0.5,
        velocity=velocity,
        sample_rate=16000,
        start_s=start_s,
    )


def test_there_are_twelve_prompt_timbres_among_at_least_twelve():
    assert len(set(PROMPT_TIMBRES)) == 12
    assert set(PROMPT_TIMBRES) <= set(TIMBRES)


@pytest.mark.parametrize("name", PITCHED)
def test_a_note_is_finite_starts_and_ends_without_a_click(name):
    timbre = TIMBRES[name]
    for pitch in (timbre.low, timbre.high):
        sound = np.atleast_2d(_tone(name, pitch))
        assert sound.shape[1] == round((0.5 + timbre.release_s) * 16000)
        assert np.isfinite(sound).all()
        peak = np.abs(sound).max()
        assert np.abs(sound[:, :4]).max() < 0.35 * peak
        assert np.abs(sound[:, -8:]).max() < 0.02 * peak


@pytest.mark.parametrize("name", PITCHED)
def test_a_note_sounds_at_its_pitch(name):
    pitch = 50 if name == "bass" else 69
    mono = np.atleast_2d(_tone(name, pitch)).mean(axis=0)
    spectrum = np.abs(np.fft.rfft(mono * np.hanning(mono.size)))
    loud = np.fft.rfftfreq(mono.size, 1 / 16000)[spectrum > 0.1 * spectrum.max()]
    ratios = loud / midi_to_hz(pitch)
    assert np.any(np.abs(ratios - 1) < 0.03), f"{name}: no partial at its fundamental"


def test_a_harder_stroke_is_louder():
    for name in PITCHED:
        soft, hard = (
            np.abs(_tone(name, 69 - 19 * (name == "bass"), velocity=v)).max() for v in (0.3, 1)
        )
        assert hard > 1.3 * soft, name


def test_a_note_sounds_the_same_wherever_it_begins_but_for_its_phase():
    early, late, later = (_tone("flute", 80, start_s=s) for s in (0.0, TICK_S, TICK_S + PERIOD_S))
    np.testing.assert_allclose(late, later, atol=2e-5)
    assert not np.allclose(early, late, atol=0.1)


def test_timbres_differ_in_spectrum_or_decay():
    def shape(name):
        mono = np.atleast_2d(_tone(name, 69)).mean(axis=0)[:8000]
        bands = [np.abs(np.fft.rfft(part)) for part in np.split(mono, 4)]
        vector = np.concatenate([np.add.reduceat(b, np.arange(0, 1000, 27)) for b in bands])
        return vector / np.linalg.norm(vector)

    names = [name for name in PITCHED if name != "bass"]
    shapes = np.stack([shape(name) for name in names])
    alike = shapes @ shapes.T - np.eye(len(names))
    assert alike.max() < 0.985, names[int(alike.max(axis=1).argmax())]
