"""Turn events into stereo sound: cached notes, panned parts, balance, room, final fade."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.signal import butter, fftconvolve, lfilter, sosfilt

from sa3lora.tiny.composer import Event, Part
from sa3lora.tiny.drums import render_drum
from sa3lora.tiny.grid import TICK_S, place_in_period
from sa3lora.tiny.oscillators import BAND_HZ, Signal
from sa3lora.tiny.theory import midi_to_hz
from sa3lora.tiny.timbres import TIMBRES, render_tone

_ROLE_LEVEL = {"melody": 1.0, "arpeggio": 0.8, "chords": 0.62, "bass": 0.8, "drums": 0.85}
_DRUM_PAN = {42: 0.15, 46: 0.15, 45: -0.2, 49: -0.15, 51: 0.2}
# Seconds until the tail has fallen by 60 dB, and its share in the mix.
ROOMS = {"dry": (0.0, 0.0), "room": (0.5, 0.16), "hall": (1.4, 0.26)}


def pan_gains(pan: float) -> Signal:
    """Give left and right gains of equal power; -1 is left, 1 is right."""
    angle = (pan + 1) * np.pi / 4
    return np.array([[np.cos(angle)], [np.sin(angle)]], dtype=np.float32) * np.float32(np.sqrt(2))


def _note(event: Event, part: Part, sample_rate: int, start_s: float) -> Signal:
    if part.role == "drums":
        return render_drum(int(event.pitch), velocity=event.velocity, sample_rate=sample_rate)
    return render_tone(
        TIMBRES[part.timbre],
        midi_to_hz(event.pitch),
        held_s=event.duration_s,
        velocity=event.velocity,
        sample_rate=sample_rate,
        start_s=start_s,
    )


def _part_audio(
    events: Sequence[Event], part: Part, *, num_samples: int, sample_rate: int
) -> Signal:
    out = np.zeros((2, num_samples), dtype=np.float32)
    cache: dict[tuple[float, int, int, int], Signal] = {}
    for event in events:
        # Oscillators run from the start of the piece: the place in the period gives their phase.
        start_s = place_in_period(event.onset_s)
        key = (
            event.pitch,
            round(event.duration_s * 200),
            round(event.velocity * 8),
            0 if part.role == "drums" else round(start_s / TICK_S),
        )
        if key not in cache:
            sound = _note(event, part, sample_rate, start_s)
            pan = _DRUM_PAN.get(int(event.pitch), 0.0) if part.role == "drums" else part.pan
            cache[key] = sound * pan_gains(pan) if sound.ndim == 1 else sound
        sound = cache[key]
        start = round(event.onset_s * sample_rate)
        stop = min(num_samples, start + sound.shape[1])
        if stop > start:
            out[:, start:stop] += sound[:, : stop - start]
    return out


def room(audio: Signal, name: str, *, sample_rate: int) -> Signal:
    """Add the tail of a room of `ROOMS`; the length stays."""
    decay_s, share = ROOMS[name]
    if share == 0:
        return audio
    num_samples = round(decay_s * sample_rate)
    t = np.arange(num_samples) / sample_rate
    # A fixed seed: a room is a place, not a new chance for every piece.
    tail = np.random.default_rng(7).standard_normal((2, num_samples)) * np.exp(-6.9 * t / decay_s)
    tail[:, : round(0.008 * sample_rate)] = 0
    tail = lfilter([0.4], [1.0, -0.6], tail, axis=1)  # walls swallow the highs
    tail /= np.sqrt((tail**2).sum(axis=1, keepdims=True))
    wet = fftconvolve(audio, tail.astype(np.float32), axes=1)[:, : audio.shape[1]]
    return np.asarray(audio + share * 2 * wet, dtype=np.float32)


def finish(audio: Signal, *, peak_db: float, sample_rate: int) -> Signal:
    """Dull what lies above the band, fade the very end to zero and set the peak."""
    band = butter(4, BAND_HZ, fs=sample_rate, output="sos")
    audio = np.asarray(sosfilt(band, audio, axis=1), dtype=np.float32)
    num_fade = min(audio.shape[1], round(0.12 * sample_rate))
    audio[:, -num_fade:] *= np.linspace(1, 0, num_fade, dtype=np.float32) ** 2
    peak = float(np.abs(audio).max())
    if peak == 0:
        raise AssertionError("a piece came out silent")
    return np.asarray(audio * (10 ** (peak_db / 20) / peak), dtype=np.float32)


def mix(
    events: Sequence[Event],
    parts: Sequence[Part],
    *,
    duration_s: float,
    sample_rate: int,
) -> Signal:
    """Render and balance all parts, (2, N), neither faded nor normalised."""
    num_samples = round(duration_s * sample_rate)
    out = np.zeros((2, num_samples), dtype=np.float32)
    for index, part in enumerate(parts):
        own = [event for event in events if event.part == index]
        audio = _part_audio(own, part, num_samples=num_samples, sample_rate=sample_rate)
        loud = _loudness(audio, sample_rate)
        if loud > 0:
            out += audio * (_ROLE_LEVEL[part.role] * part.level / loud)
    return out


def _loudness(audio: Signal, sample_rate: int) -> float:
    """Give the level of the louder moments: the 80th percentile of 50 ms windows."""
    size = max(1, sample_rate // 20)
    count = audio.shape[1] // size
    if count == 0:
        return float(np.sqrt(np.mean(audio**2)))
    power = (audio[:, : count * size] ** 2).reshape(2, count, size).mean(axis=(0, 2))
    return float(np.sqrt(np.percentile(power, 80)) + 0.02 * np.sqrt(power.max()))
