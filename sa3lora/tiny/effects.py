"""Effects of the left-out styles; none of them is used in pretraining pieces."""

from __future__ import annotations

import numpy as np
from scipy.signal import butter, sosfiltfilt

from sa3lora.tiny.oscillators import Signal


def lowpass(audio: Signal, cutoff_hz: float, *, sample_rate: int) -> Signal:
    """Dull everything above the cutoff (second order Butterworth, there and back).

    No phase moves: a dull tone is on the synthesiser's grid as a bright one is.
    """
    sos = butter(2, cutoff_hz, fs=sample_rate, output="sos")
    return np.asarray(sosfiltfilt(sos, audio, axis=1), dtype=np.float32)


def hiss(audio: Signal, rng: np.random.Generator, *, level_db: float) -> Signal:
    """Add noise at a level relative to the loudest sample."""
    noise = rng.standard_normal(audio.shape).astype(np.float32)
    return np.asarray(audio + noise * np.abs(audio).max() * 10 ** (level_db / 20), dtype=np.float32)


def crush(audio: Signal, *, bits: int, hold: int) -> Signal:
    """Round to few levels and hold every `hold` samples, as early game consoles did."""
    peak = float(np.abs(audio).max()) or 1.0
    held = np.repeat(audio[:, ::hold], hold, axis=1)[:, : audio.shape[1]]
    levels = 2 ** (bits - 1)
    return np.asarray(np.round(held / peak * levels) / levels * peak, dtype=np.float32)


def ping_pong(
    audio: Signal, *, delay_s: float, feedback: float, cutoff_hz: float, sample_rate: int
) -> Signal:
    """Add echoes that change sides and grow duller."""
    shift = round(delay_s * sample_rate)
    out = audio.copy()
    echo = audio
    for _ in range(7):
        if shift >= audio.shape[1]:
            break
        moved = np.zeros_like(audio)
        moved[:, shift:] = echo[::-1, :-shift]
        echo = lowpass(moved, cutoff_hz, sample_rate=sample_rate) * np.float32(feedback)
        out += echo
    return out


def pulse(audio: Signal, *, rate_hz: float, depth: float, sample_rate: int) -> Signal:
    """Swell and fade the loudness at a steady rate."""
    t = np.arange(audio.shape[1]) / sample_rate
    gain = 1 - depth * 0.5 * (1 + np.cos(2 * np.pi * rate_hz * t))
    return np.asarray(audio * gain, dtype=np.float32)
