"""The drum kit: General MIDI numbers to short percussion sounds."""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

from sa3lora.tiny.oscillators import Signal, lowpassed_noise, time_axis

KICK, SNARE, CLAP, CLOSED_HAT, LOW_TOM, OPEN_HAT, CRASH, RIDE = 36, 38, 39, 42, 45, 46, 49, 51
LENGTH_S = {
    KICK: 0.32, SNARE: 0.26, CLAP: 0.22, CLOSED_HAT: 0.08,
    LOW_TOM: 0.4, OPEN_HAT: 0.32, CRASH: 1.0, RIDE: 0.35,
}  # fmt: skip


def _sweep(t: Signal, start_hz: float, end_hz: float, *, rate: float) -> Signal:
    angle = 2 * np.pi * (end_hz * t + (start_hz - end_hz) / rate * (1 - np.exp(-rate * t)))
    sound: Signal = np.sin(angle).astype(np.float32)
    return sound


def _bright(noise: Signal) -> Signal:
    return np.asarray(lfilter([1.0, -0.95], [1.0], noise), dtype=np.float32)


def _body(number: int, t: Signal, noise: Signal) -> Signal:
    if number == KICK:
        return _sweep(t, 190.0, 52.0, rate=32.0) * np.exp(-11 * t) * 1.1
    if number == SNARE:
        shell = _sweep(t, 240.0, 185.0, rate=30.0) * np.exp(-22 * t)
        return 0.55 * shell + 0.32 * noise * np.exp(-17 * t)
    if number == CLAP:
        bursts = sum(np.where(t >= d, np.exp(-110 * (t - d).clip(0)), 0) for d in (0, 0.012, 0.024))
        return np.asarray(
            0.28 * noise * (bursts + np.where(t >= 0.03, np.exp(-20 * (t - 0.03).clip(0)), 0)),
            dtype=np.float32,
        )
    if number == LOW_TOM:
        return _sweep(t, 160.0, 92.0, rate=18.0) * np.exp(-9 * t)
    if number == RIDE:
        ping = np.sin(2 * np.pi * 2500 * t) + np.sin(2 * np.pi * 3250 * t)
        return np.asarray(
            0.1 * ping * np.exp(-9 * t) + 0.08 * _bright(noise) * np.exp(-12 * t), dtype=np.float32
        )
    decay = {CLOSED_HAT: 60.0, OPEN_HAT: 11.0, CRASH: 4.5}[number]
    level = {CLOSED_HAT: 0.3, OPEN_HAT: 0.24, CRASH: 0.26}[number]
    sound: Signal = level * _bright(noise) * np.exp(-decay * t)
    return sound


def render_drum(number: int, *, velocity: float, sample_rate: int) -> Signal:
    """Render one stroke, (N,), fading to zero at its end; a drum always sounds the same."""
    t = time_axis(round(LENGTH_S[number] * sample_rate), sample_rate)
    noise = lowpassed_noise(t.size, np.random.default_rng(number), smooth=1)
    fade = np.clip(t / 0.001, 0, 1) * np.clip((LENGTH_S[number] - t) / 0.02, 0, 1)
    sound: Signal = (_body(number, t, noise) * fade * velocity).astype(np.float32)
    return sound
