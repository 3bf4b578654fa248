"""Building blocks of the synthesiser: phases, harmonic sums, envelopes, formants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sa3lora.tiny.grid import SWAY_HZ, snap_hz

Signal = NDArray[np.float32]
MAX_HARMONICS = 40
# Highest frequency of all music: what the few numbers of a token can still carry.
BAND_HZ = 3500.0


def time_axis(num_samples: int, sample_rate: int) -> Signal:
    """Give the time of every sample in seconds."""
    return (np.arange(num_samples) / sample_rate).astype(np.float32)


def phase(
    hz: float,
    t: Signal,
    *,
    start_s: float = 0.0,
    vibrato_cents: float = 0.0,
    vibrato_delay_s: float = 0.2,
) -> Signal:
    """Give the phase of a tone in radians, with vibrato that swells after its delay.

    Args:
        hz: Its frequency, moved to the grid.
        t: Seconds since the note began.
        start_s: When the note began; phases count from the start of the piece.
        vibrato_cents: Depth of the vibrato.
        vibrato_delay_s: How long the note stays still.
    """
    hz = snap_hz(hz)
    clock = t.astype(np.float64) + start_s
    angle = 2 * np.pi * hz * clock
    if vibrato_cents > 0:
        depth = hz * (2 ** (vibrato_cents / 1200) - 1) / SWAY_HZ
        swell = np.clip((t - vibrato_delay_s) / 0.25, 0, 1)
        angle -= depth * swell * np.cos(2 * np.pi * SWAY_HZ * clock)
    return np.remainder(angle, 2 * np.pi).astype(np.float32)


def sway(t: Signal, *, start_s: float = 0.0) -> Signal:
    """Give a slow sine between -1 and 1 at the rate of every vibrato, for tremolos."""
    sound: Signal = np.sin(2 * np.pi * SWAY_HZ * (t + start_s)).astype(np.float32)
    return sound


def harmonic_numbers(hz: float, sample_rate: int) -> NDArray[np.float64]:
    """Number the harmonics of a tone that stay below the band limit."""
    count = int(np.clip(min(BAND_HZ, 0.46 * sample_rate) / hz, 1, MAX_HARMONICS))
    return np.arange(1, count + 1, dtype=np.float64)


def harmonic_sum(angle: Signal, amplitudes: Sequence[float], *, radius: Signal | float) -> Signal:
    """Sum the harmonics of a phase by Horner's rule.

    Harmonic k sounds as `amplitudes[k - 1] * radius**k`, so a radius that falls in time dulls the
    tone and one that rises brightens it. Phases follow Schroeder's rule (1970): the flattest wave,
    where equal phases would pile up into clicks.
    """
    z = (np.exp(1j * angle) * radius).astype(np.complex64)
    k = np.arange(1, len(amplitudes) + 1)
    terms = np.asarray(amplitudes) * np.exp(1j * np.pi * (k - 1) * k / len(amplitudes))
    total = np.zeros_like(z)
    for term in terms[::-1].astype(np.complex64):
        total += term
        total *= z
    return np.ascontiguousarray(total.imag)


def partials(
    hz: float,
    t: Signal,
    *,
    ratios: Sequence[float],
    amplitudes: Sequence[float],
    decays: Sequence[float],
    sample_rate: int,
    start_s: float = 0.0,
) -> Signal:
    """Sum decaying sine partials at any ratios; those above the band limit are left out."""
    total = np.zeros_like(t)
    for ratio, amplitude, decay in zip(ratios, amplitudes, decays, strict=True):
        if hz * ratio < min(BAND_HZ, 0.46 * sample_rate):
            wave = np.sin(phase(hz * ratio, t, start_s=start_s))
            total += amplitude * wave * np.exp(-decay * t)
    return total


def formants(
    hz: float, numbers: NDArray[np.float64], *, peaks: Sequence[tuple[float, float, float]]
) -> NDArray[np.float64]:
    """Weigh harmonics by resonances given as (centre Hz, width Hz, gain)."""
    frequency = hz * numbers
    total = np.full_like(frequency, 0.03)
    for centre, width, gain in peaks:
        total += gain * np.exp(-0.5 * ((frequency - centre) / width) ** 2)
    return total


def envelope(
    t: Signal, held_s: float, *, attack_s: float, release_s: float, power: float = 1.0
) -> Signal:
    """Rise, hold, and fall to zero within `release_s` after the key is let go.

    A note shorter than its attack reaches only the level that the attack had by then.
    """
    rise = np.clip(t / attack_s, 0, 1) ** power
    fall = np.clip(1 - (t - held_s) / release_s, 0, 1)
    sound: Signal = (rise * fall * fall).astype(np.float32)
    return sound


def lowpassed_noise(num_samples: int, rng: np.random.Generator, *, smooth: int) -> Signal:
    """Give noise dulled by a moving average of `smooth` samples, of about unit variance."""
    noise = rng.standard_normal(num_samples + smooth).astype(np.float32)
    if smooth <= 1:
        return noise[:num_samples]
    total = np.cumsum(noise, dtype=np.float64)
    sound: Signal = ((total[smooth:] - total[:-smooth]) / np.sqrt(smooth)).astype(np.float32)
    return sound
