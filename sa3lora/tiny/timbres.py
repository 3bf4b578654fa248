"""The instruments of the synthesiser: each a short function of pitch, time and velocity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sa3lora.tiny.grid import SWAY_HZ, snap_hz
from sa3lora.tiny.oscillators import (
    BAND_HZ,
    Signal,
    envelope,
    formants,
    harmonic_numbers,
    harmonic_sum,
    lowpassed_noise,
    partials,
    phase,
    sway,
    time_axis,
)

_NOISE_SEED = 11


@dataclass(frozen=True)
class Tone:
    """What a timbre gets to render: one note on its time axis, release included."""

    hz: float
    t: Signal
    held_s: float
    velocity: float
    sample_rate: int
    rng: np.random.Generator
    start_s: float

    def phase(self, hz: float, *, vibrato_cents: float = 0.0, delay_s: float = 0.2) -> Signal:
        """Give the phase of an oscillator that has run since the piece began."""
        return phase(
            hz, self.t, start_s=self.start_s, vibrato_cents=vibrato_cents, vibrato_delay_s=delay_s
        )

    def sway(self) -> Signal:
        """Give the slow sine of tremolos."""
        return sway(self.t, start_s=self.start_s)


@dataclass(frozen=True)
class Timbre:
    """An instrument: its word in captions, register (MIDI), roles and renderer.

    `render` returns (N,) for a sound that is panned, or (2, N) for one with its own width.
    """

    name: str
    low: int
    high: int
    roles: tuple[str, ...]
    release_s: float
    render: Callable[[Tone], Signal]
    sustained: bool = False


def _narrowed(sides: Signal) -> Signal:
    """Let each side hold a third of the other."""
    return np.asarray(0.67 * sides + 0.33 * sides[::-1], dtype=np.float32)


def _guitar(n: Tone) -> Signal:
    k = harmonic_numbers(n.hz, n.sample_rate)
    amps = np.abs(np.sin(np.pi * 0.19 * k)) / k**0.9
    radius = (0.86 + 0.1 * n.velocity) * np.exp(-(0.5 + n.hz / 900) * n.t)
    body = harmonic_sum(n.phase(n.hz), amps.tolist(), radius=radius)
    env = envelope(n.t, n.held_s, attack_s=0.003, release_s=0.08)
    sound: Signal = 1.6 * body * np.exp(-1.6 * n.t) * env
    return sound


def _piano(n: Tone) -> Signal:
    k = harmonic_numbers(n.hz, n.sample_rate)
    amps = (1.0 / k**1.15).tolist()
    radius = (0.62 + 0.2 * n.velocity) * np.exp(-0.8 * n.t)
    strings = 2 * harmonic_sum(n.phase(n.hz), amps, radius=radius)
    knock = lowpassed_noise(n.t.size, n.rng, smooth=24) * np.exp(-90 * n.t)
    env = envelope(n.t, n.held_s, attack_s=0.004, release_s=0.12)
    decay = 0.65 * np.exp(-5.0 * n.t) + 0.35 * np.exp(-0.7 * n.t)
    sound: Signal = (strings * decay + 0.12 * knock) * env
    return sound


def _harpsichord(n: Tone) -> Signal:
    k = harmonic_numbers(n.hz, n.sample_rate)
    amps = (np.abs(np.sin(np.pi * 0.11 * k)) / k**0.12).tolist()
    low = harmonic_sum(n.phase(n.hz), amps, radius=0.99 * np.exp(-0.05 * n.t))
    high = np.array(amps)[: max(1, len(amps) // 2)].tolist()
    low += 0.6 * harmonic_sum(n.phase(2 * n.hz), high, radius=0.99 * np.exp(-0.05 * n.t))
    env = envelope(n.t, n.held_s, attack_s=0.002, release_s=0.05)
    sound: Signal = 0.5 * low * np.exp(-3.0 * n.t) * env
    return sound


def _violin(n: Tone) -> Signal:
    k = harmonic_numbers(n.hz, n.sample_rate)
    peaks = ((320, 160, 0.6), (900, 300, 0.9), (2800, 700, 1.6))
    amps = (formants(n.hz, k, peaks=peaks) + 0.35) / k**0.85
    angle = n.phase(n.hz, vibrato_cents=14, delay_s=0.12)
    bow = lowpassed_noise(n.t.size, n.rng, smooth=2)
    env = envelope(n.t, n.held_s, attack_s=0.09, release_s=0.13)
    return (0.75 * harmonic_sum(angle, amps.tolist(), radius=0.97) + 0.004 * bow) * env


def _flute(n: Tone) -> Signal:
    amps = [1.0, 0.22 + 0.15 * n.velocity, 0.07, 0.02]
    usable = amps[: harmonic_numbers(n.hz, n.sample_rate).size]
    angle = n.phase(n.hz, vibrato_cents=6)
    tremor = 1 + 0.14 * n.sway() * np.clip((n.t - 0.2) / 0.3, 0, 1)
    breath = lowpassed_noise(n.t.size, n.rng, smooth=3) * (0.004 + 0.1 * np.exp(-28 * n.t))
    env = envelope(n.t, n.held_s, attack_s=0.055, release_s=0.1)
    sound: Signal = (harmonic_sum(angle, usable, radius=1.0) * tremor + breath) * env
    return sound


def _bells(n: Tone) -> Signal:
    ratios = (0.5, 1.0, 1.19, 1.56, 2.0, 2.51, 2.66, 4.1, 5.43)
    amps = (0.25, 0.8, 0.55, 0.4, 0.6, 0.35, 0.3, 0.28, 0.15)
    decays = (0.7, 1.1, 1.4, 1.9, 2.2, 3.2, 3.5, 6.0, 9.0)
    tone = partials(
        n.hz,
        n.t,
        ratios=ratios,
        amplitudes=amps,
        decays=decays,
        sample_rate=n.sample_rate,
        start_s=n.start_s,
    )
    return 0.6 * tone * envelope(n.t, n.held_s, attack_s=0.002, release_s=1.2)


def _pad(n: Tone) -> Signal:
    k = harmonic_numbers(n.hz, n.sample_rate)
    amps = (1 / k).tolist()
    env = envelope(n.t, n.held_s, attack_s=0.35, release_s=0.5)
    radius = 0.8 + 0.1 * np.sin(2 * np.pi * 0.35 * n.t)
    sides = []
    for beats in ((0, 1), (0, -1)):
        tone = np.zeros_like(n.t)
        for c in beats:
            tone += harmonic_sum(n.phase(n.hz + c * SWAY_HZ), amps, radius=radius)
        sides.append(0.5 * tone * env)
    return _narrowed(np.stack(sides))


def _organ(n: Tone) -> Signal:
    drawbars = np.zeros(16)
    drawbars[[0, 1, 2, 3, 5, 7, 11, 15]] = (0.8, 1.0, 0.55, 0.7, 0.3, 0.5, 0.18, 0.22)
    usable = drawbars[: harmonic_numbers(n.hz / 2, n.sample_rate).size].tolist()
    tone = harmonic_sum(n.phase(n.hz / 2), usable, radius=1.0)
    env = envelope(n.t, n.held_s, attack_s=0.008, release_s=0.035)
    spin = 0.1 * n.sway()
    return np.stack([0.45 * tone * (1 + spin) * env, 0.45 * tone * (1 - spin) * env])


def _bass(n: Tone) -> Signal:
    k = harmonic_numbers(n.hz, n.sample_rate)
    radius = 0.45 + (0.25 + 0.2 * n.velocity) * np.exp(-5.0 * n.t)
    tone = harmonic_sum(n.phase(n.hz), (1.9 / k**0.7).tolist(), radius=radius)
    sound: Signal = (
        tone * np.exp(-0.9 * n.t) * envelope(n.t, n.held_s, attack_s=0.005, release_s=0.06)
    )
    return sound


def _electric_piano(n: Tone) -> Signal:
    angle = n.phase(n.hz)
    index = (0.5 + 0.9 * n.velocity) * np.exp(-2.2 * n.t)
    tone = np.sin(angle + index * np.sin(angle))
    if n.hz * 7.1 < BAND_HZ:
        tone += 0.22 * np.sin(n.phase(n.hz * 7.1)) * np.exp(-11 * n.t)
    env = envelope(n.t, n.held_s, attack_s=0.004, release_s=0.14) * np.exp(-1.2 * n.t)
    side = 0.25 * n.sway()
    return np.stack([tone * env * (1 + side), tone * env * (1 - side)])


def _marimba(n: Tone) -> Signal:
    tone = partials(
        n.hz,
        n.t,
        ratios=(1.0, 3.93, 9.4),
        amplitudes=(1.0, 0.38, 0.16),
        decays=(5.5, 14.0, 32.0),
        sample_rate=n.sample_rate,
        start_s=n.start_s,
    )
    thump = lowpassed_noise(n.t.size, n.rng, smooth=12) * np.exp(-130 * n.t)
    return (tone + 0.2 * thump) * envelope(n.t, n.held_s, attack_s=0.002, release_s=0.35)


def _trumpet(n: Tone) -> Signal:
    k = harmonic_numbers(n.hz, n.sample_rate)
    amps = formants(n.hz, k, peaks=((1150, 480, 1.3), (2300, 600, 0.5))) + 0.5 / k
    swell = 1 - np.exp(-n.t / 0.05)
    angle = n.phase(n.hz, vibrato_cents=6, delay_s=0.35)
    radius = 0.6 + (0.28 + 0.08 * n.velocity) * swell
    env = envelope(n.t, n.held_s, attack_s=0.035, release_s=0.07)
    return 0.9 * harmonic_sum(angle, amps.tolist(), radius=radius) * env


def _square_lead(n: Tone) -> Signal:
    k = harmonic_numbers(n.hz, n.sample_rate)
    amps = np.where(k % 2 == 1, 1 / k, 0.0)
    angle = n.phase(n.hz, vibrato_cents=10, delay_s=0.25)
    tone = harmonic_sum(angle, amps.tolist(), radius=0.995)
    return 0.8 * tone * envelope(n.t, n.held_s, attack_s=0.004, release_s=0.03)


def _choir(n: Tone) -> Signal:
    k = harmonic_numbers(n.hz, n.sample_rate)
    amps = (
        formants(n.hz, k, peaks=((680, 130, 1.0), (1120, 150, 0.7), (2700, 260, 0.25)))
    ).tolist()
    env = envelope(n.t, n.held_s, attack_s=0.16, release_s=0.28)
    sides = []
    for beats in ((0, -1), (0, 1)):
        tone = np.zeros_like(n.t)
        for beat in beats:
            angle = n.phase(n.hz + beat * SWAY_HZ, vibrato_cents=8, delay_s=0.05)
            tone += harmonic_sum(angle, amps, radius=1.0)
        sides.append(0.55 * tone * env)
    return _narrowed(np.stack(sides))


def _accordion(n: Tone) -> Signal:
    k = harmonic_numbers(n.hz, n.sample_rate)
    amps = (np.where(k % 2 == 0, 0.75, 1.0) / k**0.45).tolist()
    env = envelope(n.t, n.held_s, attack_s=0.045, release_s=0.06)
    tone = harmonic_sum(n.phase(n.hz), amps, radius=0.93)
    tone += 0.9 * harmonic_sum(n.phase(n.hz + SWAY_HZ), amps, radius=0.93)
    return 0.3 * tone * env


def _drum_pitch_is_percussion(n: Tone) -> Signal:
    raise ValueError("drums are rendered by sa3lora.tiny.drums")


_ALL = (
    Timbre("guitar", 40, 76, ("melody", "chords", "arpeggio"), 0.08, _guitar),
    Timbre("piano", 45, 84, ("melody", "chords", "arpeggio"), 0.12, _piano),
    Timbre("harpsichord", 48, 79, ("melody", "chords", "arpeggio"), 0.05, _harpsichord),
    Timbre("violin", 55, 86, ("melody",), 0.13, _violin, sustained=True),
    Timbre("flute", 67, 93, ("melody",), 0.1, _flute, sustained=True),
    Timbre("bells", 67, 91, ("melody", "arpeggio"), 1.2, _bells),
    Timbre("synth pad", 48, 74, ("chords",), 0.5, _pad, sustained=True),
    Timbre("organ", 52, 79, ("melody", "chords"), 0.035, _organ, sustained=True),
    Timbre("bass", 40, 59, ("bass",), 0.06, _bass),
    Timbre("electric piano", 50, 79, ("melody", "chords"), 0.14, _electric_piano),
    Timbre("marimba", 55, 84, ("melody", "arpeggio"), 0.35, _marimba),
    Timbre("trumpet", 55, 82, ("melody",), 0.07, _trumpet, sustained=True),
    Timbre("square lead", 57, 84, ("melody",), 0.03, _square_lead, sustained=True),
    Timbre("choir", 52, 76, ("melody", "chords"), 0.28, _choir, sustained=True),
    Timbre("accordion", 53, 81, ("melody", "chords"), 0.06, _accordion, sustained=True),
    Timbre("drums", 35, 50, ("drums",), 0.0, _drum_pitch_is_percussion),
)
TIMBRES: dict[str, Timbre] = {timbre.name: timbre for timbre in _ALL}
# The twelve that the zero-shot timbre test asks for.
PROMPT_TIMBRES = (
    "guitar", "harpsichord", "violin", "flute", "bells", "synth pad",
    "organ", "bass", "electric piano", "marimba", "trumpet", "drums",
)  # fmt: skip


def render_tone(
    timbre: Timbre,
    hz: float,
    *,
    held_s: float,
    velocity: float,
    sample_rate: int,
    start_s: float = 0.0,
) -> Signal:
    """Render one note as (2, N) or (N,), release included, scaled by its velocity.

    Its noise is always the same, as that of a sampled instrument is.
    """
    num_samples = max(1, round((held_s + timbre.release_s) * sample_rate))
    t = time_axis(num_samples, sample_rate)
    tone = Tone(
        snap_hz(hz), t, held_s, velocity, sample_rate, np.random.default_rng(_NOISE_SEED), start_s
    )
    return (timbre.render(tone) * (0.35 + 0.65 * velocity)).astype(np.float32)
