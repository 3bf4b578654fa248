"""Exact captions of pieces: SA3's field form, looser orders, and plain short forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_HEADER = "TrackType: Music, VocalType: Instrumental"


@dataclass(frozen=True)
class Description:
    """What is true of a piece, in words. Empty strings are facts that are not told."""

    instruments: tuple[str, ...]
    tempo_bpm: float
    genre: str = ""
    mood: str = ""
    key: str = ""
    density: str = ""
    texture: str = ""
    reverb: str = ""

    @property
    def tempo_words(self) -> str:
        """The tempo as in prompts, to the nearest whole: "96 BPM"."""
        return f"{self.tempo_bpm:.0f} BPM"


def mood_of(mode: str, tempo_bpm: float, *, density: str) -> str:
    """Name the mood by mode, tempo and density, always in the same way."""
    lively = tempo_bpm >= 108 and density != "sparse"
    if mode == "major":
        if density == "busy" and lively:
            return "energetic"
        return "happy" if lively else "calm"
    if density == "busy" and lively:
        return "tense"
    return "dark" if lively else "sad"


def pace_of(tempo_bpm: float) -> str:
    """Name the pace: slow below 90 BPM, fast from 126 BPM on."""
    if tempo_bpm < 90:
        return "slow"
    return "fast" if tempo_bpm >= 126 else "moderate"


def join_words(words: Sequence[str]) -> str:
    """Join as prose does: "flute, bass and drums"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def full_caption(d: Description) -> str:
    """Write every known fact in the order of SA3's own prompts."""
    fields = [_HEADER]
    if d.genre:
        fields.append(f"Genre: {d.genre}")
    fields.append(f"Instruments: {', '.join(d.instruments)}")
    if d.mood:
        fields.append(f"Mood: {d.mood}")
    if d.key:
        fields.append(f"Key: {d.key}")
    fields.append(d.tempo_words)
    return ", ".join(fields + [word for word in (d.density, d.texture, d.reverb) if word])


def _loose_caption(d: Description, rng: np.random.Generator) -> str:
    """Drop some fields and shuffle the rest; the instruments and mostly the tempo stay."""
    optional = [
        f"Genre: {d.genre}" if d.genre else "",
        f"Mood: {d.mood}" if d.mood else "",
        f"Key: {d.key}" if d.key else "",
        d.density,
        d.texture,
        d.reverb,
    ]
    fields = [field for field in optional if field and rng.random() < 0.55]
    fields.append(f"Instruments: {', '.join(d.instruments)}")
    if rng.random() < 0.85:
        fields.append(d.tempo_words)
    fields = [fields[int(i)] for i in rng.permutation(len(fields))]
    return ", ".join([_HEADER, *fields] if rng.random() < 0.4 else fields)


def _short_caption(d: Description, rng: np.random.Generator) -> str:
    """Write a few plain words, as people type them."""
    names = join_words(d.instruments)
    tempo = d.tempo_words
    if len(d.instruments) == 1:
        solo = f"solo {names} {d.texture}" if d.texture and rng.random() < 0.5 else f"solo {names}"
        forms = [solo, f"{solo}, {tempo}", f"{names}, {tempo}"]
        if d.mood:
            forms += [f"{d.mood} {names}, {tempo}", f"{d.mood} solo {names} at {tempo}"]
    else:
        forms = [f"{names}, {tempo}", names]
        if d.genre:
            forms += [f"{d.genre} music with {names}, {tempo}", f"{d.genre}, {names}"]
        if d.mood:
            forms += [f"{d.mood} music with {names} at {tempo}", f"{d.mood}, {names}, {tempo}"]
    if d.density:
        pace = pace_of(d.tempo_bpm)
        forms += [f"{d.density} {names}, {tempo}", f"{pace} {d.density} {names}"]
    return forms[int(rng.integers(len(forms)))]


def write_caption(d: Description, rng: np.random.Generator) -> str:
    """Choose one of the three forms; every word of it is true of the piece."""
    choice = rng.random()
    if choice < 0.35:
        return full_caption(d)
    return _loose_caption(d, rng) if choice < 0.7 else _short_caption(d, rng)
