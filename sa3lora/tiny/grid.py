"""The synthesiser's grid: notes begin on ticks, and every tone repeats within a period.

A tick is one patch of the embedded autoencoder, a period one of its chunks of two latents. Tones
whose frequencies are whole multiples of one cycle a period, counted from the start of the piece,
look the same in every chunk, and a drum stroke looks the same wherever it falls. So a codec of two
million weights can learn the sounds by heart instead of coding their phases. A note is at most
12 ms and 2.6 Hz off.
"""

from __future__ import annotations

from typing import Final

from sa3lora.tiny.shape import PATCHES_PER_LATENT, RATIO, SAMPLE_RATE

TICK_S: Final = RATIO / PATCHES_PER_LATENT / SAMPLE_RATE
PERIOD_S: Final = 2 * RATIO / SAMPLE_RATE
# The rate of every vibrato and tremolo: one swing a period.
SWAY_HZ: Final = 1 / PERIOD_S


def snap_time(seconds: float) -> float:
    """Move a moment to the nearest tick."""
    return round(seconds / TICK_S) * TICK_S


def snap_hz(hz: float) -> float:
    """Move a frequency to the nearest one with whole cycles a period, at least one."""
    return max(1, round(hz * PERIOD_S)) / PERIOD_S


def place_in_period(seconds: float) -> float:
    """Give the time since the last period began, of a moment on a tick."""
    ticks = round(seconds / TICK_S) % round(PERIOD_S / TICK_S)
    return ticks * TICK_S
