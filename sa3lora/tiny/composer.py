"""Turn a plan (key, tempo, parts) into note events; all chance comes from the given generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sa3lora.tiny import drums
from sa3lora.tiny.grid import TICK_S, snap_time
from sa3lora.tiny.theory import BEATS_PER_BAR, PROGRESSIONS, Key, into_register
from sa3lora.tiny.timbres import TIMBRES

DENSITIES = ("sparse", "medium", "busy")
# (start, length) in beats within a bar.
Cell = tuple[tuple[float, float], ...]
_MELODY_CELLS: dict[str, tuple[Cell, ...]] = {
    "sparse": (
        ((0, 2), (2, 2)),
        ((0, 2), (2, 1), (3, 1)),
        ((0, 1), (1, 1), (2, 2)),
        ((0, 3), (3, 1)),
    ),
    "medium": (
        ((0, 1), (1, 1), (2, 1), (3, 1)),
        ((0, 1), (1, 0.5), (1.5, 0.5), (2, 1), (3, 1)),
        ((0, 0.5), (0.5, 0.5), (1, 1), (2, 0.5), (2.5, 0.5), (3, 1)),
        ((0, 1), (1, 1), (2, 0.5), (2.5, 0.5), (3, 1)),
    ),
    "busy": (
        tuple((i / 2, 0.5) for i in range(8)),
        tuple((i / 2, 0.5) for i in range(6)) + tuple((3 + i / 4, 0.25) for i in range(4)),
        tuple((i / 4, 0.25) for i in range(4)) + tuple((1 + i / 2, 0.5) for i in range(6)),
        tuple((i / 4, 0.25) for i in range(16)),
    ),
}
_CHORD_CELLS: dict[str, tuple[Cell, ...]] = {
    "sparse": (((0, 4),), ((0, 2), (2, 2))),
    "medium": (tuple((i, 0.9) for i in range(4)), ((0, 1.5), (1.5, 0.5), (2, 1), (3, 1))),
    "busy": (
        tuple((i / 2, 0.42) for i in range(8)),
        ((0, 0.5), (0.5, 0.5), (1.5, 0.5), (2, 0.5), (2.5, 0.5), (3.5, 0.5)),
    ),
}
_DRUM_BARS: dict[str, tuple[dict[int, tuple[float, ...]], ...]] = {
    "sparse": (
        {drums.KICK: (0,), drums.SNARE: (2,), drums.CLOSED_HAT: (0, 1, 2, 3)},
        {drums.KICK: (0, 2), drums.LOW_TOM: (1, 3)},
    ),
    "medium": (
        {
            drums.KICK: (0, 2),
            drums.SNARE: (1, 3),
            drums.CLOSED_HAT: tuple(i / 2 for i in range(8)),
        },
        {
            drums.KICK: (0, 1, 2, 3),
            drums.CLAP: (1, 3),
            drums.OPEN_HAT: (0.5, 1.5, 2.5, 3.5),
        },
        {
            drums.KICK: (0, 2.5),
            drums.SNARE: (1, 3),
            drums.RIDE: (0, 1, 1.5, 2, 3, 3.5),
        },
    ),
    "busy": (
        {
            drums.KICK: (0, 0.75, 2, 2.5),
            drums.SNARE: (1, 3, 3.75),
            drums.CLOSED_HAT: tuple(i / 4 for i in range(16)),
        },
        {
            drums.KICK: (0, 1, 2, 3),
            drums.SNARE: (1, 3),
            drums.CLOSED_HAT: tuple(i / 4 for i in range(16) if i % 4 != 2),
            drums.OPEN_HAT: (0.5, 1.5, 2.5, 3.5),
        },
    ),
}


@dataclass(frozen=True)
class Part:
    """One instrument with its role: melody, chords, arpeggio, bass or drums."""

    timbre: str
    role: str
    pan: float = 0.0
    level: float = 1.0


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first note."""

    key: Key
    tempo_bpm: float
    density: str
    parts: tuple[Part, ...]
    genre: str = "pop"
    swing: float = 0.0
    reverb: str = "dry"


@dataclass(frozen=True)
class Event:
    """One note: `pitch` is MIDI (a General MIDI drum number for drums), `part` an index."""

    onset_s: float
    duration_s: float
    pitch: float
    velocity: float
    part: int


@dataclass(frozen=True)
class _Note:
    beat: float
    length: float
    pitch: float
    velocity: float


def accent(beat: float) -> float:
    """Stress the bar, then the beat, so that the tempo can be heard. In eighths of full."""
    if beat % BEATS_PER_BAR == 0:
        return 1.0
    return 0.75 if beat % 1 == 0 else 0.5


def _melody(
    plan: Plan, part: Part, bars: int, degrees: list[int], rng: np.random.Generator
) -> list[_Note]:
    timbre = TIMBRES[part.timbre]
    cells = _MELODY_CELLS[plan.density]
    pair = [cells[int(i)] for i in rng.choice(len(cells), 2, replace=False)]
    centre = rng.uniform(timbre.low + 8, timbre.high - 8)
    tonic = round((centre - plan.key.pitch(0)) / 12) * 7
    low, high = tonic - 4, tonic + 6
    degree = tonic + int(rng.choice([0, 2, 4]))
    notes = []
    for bar in range(bars):
        chord = {d % 7 for d in plan.key.chord(degrees[bar])}
        for start, length in pair[1 if bar % 4 == 3 else 0]:
            degree += int(
                rng.choice([-2, -1, -1, 0, 1, 1, 2], p=[0.1, 0.2, 0.15, 0.1, 0.15, 0.2, 0.1])
            )
            degree = int(np.clip(degree, low, high))
            if start in (0, 2):
                degree = min(
                    (d for d in range(low, high + 1) if d % 7 in chord),
                    key=lambda d: abs(d - degree),
                )
            pitch = into_register(plan.key.pitch(degree), timbre.low, timbre.high)
            beat = bar * BEATS_PER_BAR + start
            notes.append(_Note(beat, length * 0.92, pitch, accent(beat)))
    return notes


def _chords(
    plan: Plan, part: Part, bars: int, degrees: list[int], rng: np.random.Generator
) -> list[_Note]:
    timbre = TIMBRES[part.timbre]
    cells = _CHORD_CELLS[plan.density]
    cell = cells[int(rng.integers(len(cells)))]
    if timbre.release_s >= 0.25:  # slow voices would smear anything quicker
        cell = _CHORD_CELLS["sparse"][0 if plan.density == "sparse" else 1]
    size = 4 if plan.genre == "jazz" else 3
    low = rng.uniform(timbre.low, min(timbre.low + 6, timbre.high - 14))
    notes = []
    for bar in range(bars):
        pitches = [
            into_register(plan.key.pitch(d), low, low + 14)
            for d in plan.key.chord(degrees[bar], size)
        ]
        for start, length in cell:
            beat = bar * BEATS_PER_BAR + start
            notes += [_Note(beat, length * 0.95, p, accent(beat)) for p in pitches]
    return notes


def _arpeggio(
    plan: Plan, part: Part, bars: int, degrees: list[int], rng: np.random.Generator
) -> list[_Note]:
    timbre = TIMBRES[part.timbre]
    step = {"sparse": 1.0, "medium": 0.5, "busy": 0.25}[plan.density]
    order = ((0, 1, 2, 3), (0, 1, 2, 3, 2, 1), (3, 2, 1, 0), (0, 2, 1, 3))[int(rng.integers(4))]
    low = rng.uniform(timbre.low, timbre.high - 24)
    notes = []
    for bar in range(bars):
        base = into_register(plan.key.pitch(degrees[bar]), low, low + 12)
        root = plan.key.pitch(degrees[bar])
        chord = [base + plan.key.pitch(d) - root for d in plan.key.chord(degrees[bar])]
        chord.append(base + 12)
        for i in range(round(BEATS_PER_BAR / step)):
            beat = bar * BEATS_PER_BAR + i * step
            notes.append(_Note(beat, step * 0.95, chord[order[i % len(order)]], accent(beat)))
    return notes


def _bass(
    plan: Plan, part: Part, bars: int, degrees: list[int], rng: np.random.Generator
) -> list[_Note]:
    timbre = TIMBRES[part.timbre]
    patterns: dict[str, tuple[tuple[int, ...], ...]] = {
        "sparse": ((0, 0), (0, 7)),
        "medium": ((0, 0, 0, 0), (0, 0, 7, 0), (0, 12, 7, 12)),
        "busy": ((0,) * 8, (0, 12) * 4, (0, 0, 12, 0, 7, 7, 12, 0)),
    }
    choices = patterns[plan.density]
    pattern = choices[int(rng.integers(len(choices)))]
    step = BEATS_PER_BAR / len(pattern)
    notes = []
    for bar in range(bars):
        root = into_register(plan.key.pitch(degrees[bar]), timbre.low, timbre.low + 12)
        for i, jump in enumerate(pattern):
            beat = bar * BEATS_PER_BAR + i * step
            pitch = into_register(root + jump, timbre.low, timbre.high)
            notes.append(_Note(beat, step * 0.85, pitch, accent(beat)))
    return notes


def _drums(
    plan: Plan, part: Part, bars: int, degrees: list[int], rng: np.random.Generator
) -> list[_Note]:
    choices = _DRUM_BARS[plan.density]
    pattern = choices[int(rng.integers(len(choices)))]
    fill = tuple((drums.LOW_TOM if i % 2 else drums.SNARE, 3 + i / 4) for i in range(4))
    notes = []
    for bar in range(bars):
        beats = [(n, s) for n, starts in pattern.items() for s in starts]
        if bar % 4 == 3 and plan.density != "sparse":
            beats = [(n, s) for n, s in beats if s < 3] + list(fill)
        for number, start in beats:
            beat = bar * BEATS_PER_BAR + start
            notes.append(_Note(beat, 0.25, number, 0.25 + 0.75 * accent(beat)))
    return notes


_WRITERS = {
    "melody": _melody,
    "chords": _chords,
    "arpeggio": _arpeggio,
    "bass": _bass,
    "drums": _drums,
}


def _ending(
    plan: Plan, part: Part, pitches: list[float], beat: float, length: float
) -> list[_Note]:
    """Close on the tonic chord (drums: kick and crash) and let it ring."""
    if part.role == "drums":
        return [_Note(beat, length, drums.KICK, 1.0), _Note(beat, length, drums.CRASH, 0.9)]
    timbre = TIMBRES[part.timbre]
    middle = float(np.median(pitches)) if pitches else (timbre.low + timbre.high) / 2
    low = float(np.clip(middle - 6, timbre.low, timbre.high - 12))
    degrees = plan.key.chord(0) if part.role == "chords" else (0,)
    return [
        _Note(beat, length, into_register(plan.key.pitch(d), low, low + 12), 1.0) for d in degrees
    ]


def swung(beat: float, swing: float) -> float:
    """Delay the off-beat eighths by `swing` beats."""
    return beat + swing if beat % 1 == 0.5 else beat


def compose(plan: Plan, rng: np.random.Generator, *, duration_s: float) -> list[Event]:
    """Write the notes of a piece that ends, released, within `duration_s`."""
    beat_s = 60.0 / plan.tempo_bpm
    ring_s = min(1.6, max(0.35, 0.2 * duration_s))
    last_beat = max(0, int((duration_s - ring_s) / beat_s))
    bars = last_beat // BEATS_PER_BAR + 1
    progressions = PROGRESSIONS[plan.key.mode]
    progression = progressions[int(rng.integers(len(progressions)))]
    degrees = [progression[bar % len(progression)] for bar in range(bars)]
    events = []
    for index, part in enumerate(plan.parts):
        notes = _WRITERS[part.role](plan, part, bars, degrees, rng)
        notes = [n for n in notes if n.beat < last_beat]
        rest_s = duration_s - last_beat * beat_s
        release_s = min(TIMBRES[part.timbre].release_s, 0.5 * rest_s)
        length = max(0.1, 0.92 * rest_s - release_s) / beat_s
        notes += _ending(plan, part, [n.pitch for n in notes], last_beat, length)
        for note in notes:
            held = min(note.length, last_beat - note.beat) if note.beat < last_beat else note.length
            start_s = snap_time(swung(note.beat, plan.swing) * beat_s)
            held_s = max(TICK_S, snap_time(held * beat_s - TICK_S / 2))
            events.append(Event(start_s, held_s, note.pitch, note.velocity, index))
    return sorted(events, key=lambda e: (e.onset_s, e.part, e.pitch))
