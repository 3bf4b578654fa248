"""Captions."""

from __future__ import annotations

import numpy as np
import pytest

from sa3lora.tiny.captions import (
    Description,
    full_caption,
    join_words,
    mood_of,
    pace_of,
    write_caption,
)

FACTS = Description(
    instruments=("flute", "bass"),
    tempo_bpm=96.0,
    genre="folk",
    mood="calm",
    key="D minor",
    density="sparse",
    reverb="dry",
)


def test_the_full_form_is_the_one_of_stable_audio():
    assert full_caption(FACTS) == (
        "TrackType: Music, VocalType: Instrumental, Genre: folk, Instruments: flute, bass, "
        "Mood: calm, Key: D minor, 96 BPM, sparse, dry"
    )


def test_facts_that_are_not_known_are_not_written():
    assert full_caption(Description(("drums",), 120.0)) == (
        "TrackType: Music, VocalType: Instrumental, Instruments: drums, 120 BPM"
    )


def test_every_variant_names_all_instruments_and_nothing_untrue():
    rng = np.random.default_rng(0)
    variants = {write_caption(FACTS, rng) for _ in range(300)}
    assert len(variants) > 40
    known = set(full_caption(FACTS).replace(",", " ").split())
    known |= {"music", "with", "and", "at", "moderate"}
    for caption in variants:
        assert "flute" in caption
        assert "bass" in caption
        assert set(caption.replace(",", " ").split()) <= known, caption


def test_a_solo_is_called_one():
    rng = np.random.default_rng(0)
    solo = Description(("flute",), 96.0, texture="melody")
    assert any(write_caption(solo, rng).startswith("solo flute") for _ in range(50))


@pytest.mark.parametrize(
    ("mode", "bpm", "density", "mood"),
    [
        ("major", 130, "busy", "energetic"),
        ("major", 130, "medium", "happy"),
        ("major", 130, "sparse", "calm"),
        ("minor", 130, "busy", "tense"),
        ("minor", 130, "medium", "dark"),
        ("minor", 80, "busy", "sad"),
    ],
)
def test_mood_follows_mode_tempo_and_density(mode, bpm, density, mood):
    assert mood_of(mode, bpm, density=density) == mood


def test_pace_words_split_the_tempo_range():
    assert [pace_of(bpm) for bpm in (89, 90, 125, 126)] == ["slow", "moderate", "moderate", "fast"]


def test_words_are_joined_as_in_prose():
    assert join_words(["a"]) == "a"
    assert join_words(["a", "b", "c"]) == "a, b and c"
