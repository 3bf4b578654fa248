"""Styles that pretraining never hears, for LoRA demonstrations.

Their sounds are the synthesiser's own, so that the autoencoder can follow; scales, rhythms and
effects, and these combinations of them, occur nowhere in pretraining pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sa3lora.tiny import drums, effects
from sa3lora.tiny.composer import Event, Part, accent
from sa3lora.tiny.grid import PERIOD_S, TICK_S, snap_time
from sa3lora.tiny.oscillators import Signal
from sa3lora.tiny.render import room
from sa3lora.tiny.theory import NOTE_NAMES

Process = Callable[[Signal, int], Signal]


@dataclass(frozen=True)
class Score:
    """A composed piece of a style, ready for the renderer, with its effects as `process`."""

    events: list[Event]
    parts: tuple[Part, ...]
    tempo_bpm: float
    tonic: int
    process: Process


@dataclass(frozen=True)
class Style:
    """A left-out style: its name, words that are true of all its pieces, and its composer."""

    name: str
    words: tuple[str, ...]
    instruments: tuple[str, ...]
    write: Callable[[np.random.Generator, float], Score]


class _Sheet:
    """Collect notes in beats; nothing may start after the piece begins to end."""

    def __init__(self, tempo_bpm: float, duration_s: float, *, ring_s: float = 1.0) -> None:
        self.beat_s = 60.0 / tempo_bpm
        self.duration_s = duration_s
        self.num_beats = max(1.0, (duration_s - min(ring_s, 0.2 * duration_s)) / self.beat_s)
        self.events: list[Event] = []

    def add(self, part: int, beat: float, length: float, pitch: float, velocity: float) -> None:
        if beat >= self.num_beats:
            return
        start = snap_time(beat * self.beat_s)
        held = min(length * self.beat_s, max(0.05, self.duration_s - start - 0.15))
        held = max(TICK_S, snap_time(held))
        self.events.append(Event(start, held, pitch, velocity, part))

    def sorted(self) -> list[Event]:
        return sorted(self.events, key=lambda e: (e.onset_s, e.part, e.pitch))


def _glass_gamelan(rng: np.random.Generator, duration_s: float) -> Score:
    """Interlocking detuned bells on a pelog-like scale over a slow gong."""
    tempo = float(rng.choice([112, 120, 128, 136]))
    sheet = _Sheet(tempo, duration_s)
    tonic = int(rng.integers(12))
    pelog = (0.0, 1.2, 2.7, 6.7, 7.9)
    core = [int(rng.integers(5)) for _ in range(8)]
    base = 67 + tonic % 7
    for i in range(int(sheet.num_beats * 2) + 1):
        beat = i / 2
        degree = core[(i // 4) % 8] + (0, 1, 2, 1)[i % 4]
        octave, step = divmod(degree, 5)
        pitch = base + 12 * octave + pelog[step]
        # Two players take turns; each has a partner a little sharp, so that the metal beats.
        side = i % 2
        sheet.add(side, beat, 0.3, pitch, 0.5 + 0.4 * accent(beat))
        sheet.add(side + 2, beat, 0.3, pitch + 0.22, 0.6)
        if i % 4 == 0:
            sheet.add(4, beat, 0.5, base - 12 + pelog[core[(i // 4) % 8]], 0.9)
        if i % 32 == 0:
            sheet.add(5, beat, 7.0, base - 24, 1.0)
    parts = (
        Part("bells", "melody", -0.3), Part("bells", "melody", 0.3),
        Part("bells", "arpeggio", -0.2, 0.6), Part("bells", "arpeggio", 0.2, 0.6),
        Part("marimba", "melody", 0.0, 0.7), Part("bells", "bass", 0.0, 1.0),
    )  # fmt: skip
    return Score(sheet.sorted(), parts, tempo, tonic, lambda audio, rate: audio)


def _lofi_tape(rng: np.random.Generator, duration_s: float) -> Score:
    """Swung electric piano sevenths and soft drums on a worn tape."""
    tempo = float(rng.choice([72, 76, 80, 84]))
    sheet = _Sheet(tempo, duration_s)
    tonic = int(rng.integers(12))
    base = 50 + tonic % 9
    roots = ((0, 5, 10, 3), (0, -4, 3, -2), (5, 10, 3, 0))[int(rng.integers(3))]
    for bar in range(int(sheet.num_beats // 4) + 1):
        root = roots[bar % 4]
        for start, length in ((0, 1.4), (1.66, 0.3), (2.66, 1.2)):
            for third in (0, 3, 7, 10, 14):
                sheet.add(0, 4 * bar + start, length, base + root % 12 + third, 0.6)
        for start in (0, 1.66, 2.66):
            sheet.add(1, 4 * bar + start, 0.8, 40 + (base + root) % 12, 0.8)
        for start in (0.0, 2.66):
            sheet.add(2, 4 * bar + start, 0.2, drums.KICK, 0.8)
        for start in (1.0, 3.0):
            sheet.add(2, 4 * bar + start, 0.2, drums.SNARE, 0.55)
        for i in range(4):
            sheet.add(2, 4 * bar + i, 0.1, drums.CLOSED_HAT, 0.5)
            sheet.add(2, 4 * bar + i + 0.66, 0.1, drums.CLOSED_HAT, 0.35)
    parts = (
        Part("electric piano", "chords", 0.0, 1.3),
        Part("bass", "bass", 0.0, 0.9),
        Part("drums", "drums", 0.0, 0.7),
    )
    seed = int(rng.integers(2**31))

    def process(audio: Signal, rate: int) -> Signal:
        narrow = 0.35 * audio + 0.65 * audio.mean(axis=0, keepdims=True)
        worn = effects.pulse(narrow, rate_hz=tempo / 60, depth=0.3, sample_rate=rate)
        dull = effects.lowpass(worn, 1200.0, sample_rate=rate)
        return effects.hiss(dull, np.random.default_rng(seed), level_db=-50.0)

    return Score(sheet.sorted(), parts, tempo, tonic, process)


def _chip_arcade(rng: np.random.Generator, duration_s: float) -> Score:
    """Racing square-wave arpeggios, a square bass and clicks, crushed to few bits."""
    tempo = float(rng.choice([140, 150, 160]))
    sheet = _Sheet(tempo, duration_s, ring_s=0.3)
    tonic = int(rng.integers(12))
    base = 60 + tonic % 10
    roots = ((0, 8, 3, 10), (0, 5, 8, 7), (0, 10, 8, 7))[int(rng.integers(3))]
    for i in range(int(sheet.num_beats * 8) + 1):
        beat = i / 8
        root = roots[(i // 32) % 4]
        minor = 3 if root in (0, 5) else 4
        pitch = base + root % 12 + (0, minor, 7, 12)[i % 4]
        sheet.add(0, beat, 0.12, pitch if pitch <= 84 else pitch - 12, 0.8)
        if i % 4 == 0:
            sheet.add(1, beat, 0.4, base - 12 + root % 12, 0.9)
        if i % 16 == 8:
            sheet.add(2, beat, 0.1, drums.SNARE, 0.8)
        if i % 4 == 2:
            sheet.add(2, beat, 0.05, drums.CLOSED_HAT, 0.7)
    parts = (
        Part("square lead", "melody", 0.3),
        Part("square lead", "bass", -0.3, 0.9),
        Part("drums", "drums", 0.0, 0.5),
    )
    return Score(
        sheet.sorted(),
        parts,
        tempo,
        tonic,
        lambda audio, rate: effects.crush(audio, bits=5, hold=2),
    )


def _drone_ritual(rng: np.random.Generator, duration_s: float) -> Score:
    """Pulsing low drones on an open fifth, with a single deep drum."""
    tempo = float(rng.choice([70, 72, 76]))
    sheet = _Sheet(tempo, duration_s)
    tonic = int(rng.integers(12))
    base = 48 + tonic % 8
    for beat in range(0, int(sheet.num_beats) + 1, 16):
        for interval in (0.0, 7.0):
            sheet.add(0, beat, 16.4, base + interval, 0.9)
            sheet.add(1, beat, 16.4, base + 12 + interval, 0.8)
    for bar in range(int(sheet.num_beats // 4) + 1):
        sheet.add(2, 4 * bar, 0.5, drums.LOW_TOM, 1.0)
        sheet.add(2, 4 * bar, 0.5, drums.KICK, 0.9)
        sheet.add(2, 4 * bar + 0.5, 0.5, drums.LOW_TOM, 0.5)
        if bar % 2 == 1:
            for i, step in enumerate(rng.choice([0, 1, 5, 7], 3)):
                sheet.add(3, 4 * bar + i, 1.2, base + 12 + int(step), 0.7)
    parts = (
        Part("accordion", "chords", -0.2, 1.1),
        Part("choir", "chords", 0.0, 1.0),
        Part("drums", "drums", 0.0, 0.9),
        Part("choir", "melody", 0.0, 0.5),
    )

    def process(audio: Signal, rate: int) -> Signal:
        swell = effects.pulse(audio, rate_hz=tempo / 60 / 2, depth=0.75, sample_rate=rate)
        return room(effects.lowpass(swell, 2600.0, sample_rate=rate), "hall", sample_rate=rate)

    return Score(sheet.sorted(), parts, tempo, tonic, process)


def _echo_dub(rng: np.random.Generator, duration_s: float) -> Score:
    """Off-beat organ stabs lost in ping-pong echoes over a deep one-drop."""
    tempo = float(rng.choice([72, 76, 80]))
    sheet = _Sheet(tempo, duration_s)
    tonic = int(rng.integers(12))
    base = 55 + tonic % 10
    line = [int(x) for x in rng.choice([0, 0, 3, 7, 10], 5)]
    for bar in range(int(sheet.num_beats // 4) + 1):
        shift = (0, 0, 5, 0)[bar % 4]
        for beat in (1.0, 3.0) if bar % 2 else (1.0,):
            for third in (0, 3, 7):
                sheet.add(0, 4 * bar + beat, 0.18, base + shift + third, 0.9)
        for i, start in enumerate((0.0, 0.75, 1.5, 2.5, 3.0)):
            sheet.add(1, 4 * bar + start, 0.6, 40 + (base + shift + line[i]) % 12, 0.9)
        sheet.add(2, 4 * bar + 2.0, 0.2, drums.KICK, 0.9)
        sheet.add(2, 4 * bar + 2.0, 0.2, drums.CLAP, 0.7)
    parts = (
        Part("organ", "chords", 0.0, 1.2),
        Part("bass", "bass", 0.0, 1.3),
        Part("drums", "drums", 0.0, 0.8),
    )

    def process(audio: Signal, rate: int) -> Signal:
        deep = effects.lowpass(audio, 320.0, sample_rate=rate)
        echoed = effects.ping_pong(
            audio - deep,
            delay_s=round(0.75 * 60 / tempo / PERIOD_S) * PERIOD_S,
            feedback=0.72,
            cutoff_hz=2400.0,
            sample_rate=rate,
        )
        return np.asarray(deep + echoed, dtype=np.float32)

    return Score(sheet.sorted(), parts, tempo, tonic, process)


_ALL = (
    Style("glass gamelan", ("shimmering", "interlocking"), ("bells", "marimba"), _glass_gamelan),
    Style("lofi tape", ("dusty", "swung"), ("electric piano", "bass", "drums"), _lofi_tape),
    Style("chip arcade", ("racing", "crushed"), ("square lead", "drums"), _chip_arcade),
    Style("drone ritual", ("pulsing", "deep"), ("accordion", "choir", "drums"), _drone_ritual),
    Style("echo dub", ("spacious", "echoing"), ("organ", "bass", "drums"), _echo_dub),
)
STYLES: dict[str, Style] = {style.name: style for style in _ALL}


def tonic_name(score: Score) -> str:
    """Give the tonic of a score; its scale need not be major or minor."""
    return NOTE_NAMES[score.tonic]
