"""Keys, scales, chords and progressions of the composer; pitches are MIDI numbers."""

from __future__ import annotations

from dataclasses import dataclass

NOTE_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
SCALES: dict[str, tuple[int, ...]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
}
# Scale degrees, 0 is the tonic; one chord a bar.
PROGRESSIONS: dict[str, tuple[tuple[int, ...], ...]] = {
    "major": ((0, 4, 5, 3), (0, 3, 4, 0), (0, 5, 3, 4), (0, 3, 0, 4), (0, 2, 3, 4), (0, 1, 4, 0)),
    "minor": ((0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 6), (0, 3, 6, 2), (0, 5, 3, 4), (0, 2, 5, 4)),
}
MIN_BPM = 70
MAX_BPM = 160
# About 6 % apart, so that a model which rounds to the next one is still within 8 %.
COMMON_BPM = (72, 76, 80, 84, 90, 96, 100, 108, 112, 120, 128, 136, 140, 150, 160)
BEATS_PER_BAR = 4


def midi_to_hz(pitch: float) -> float:
    """Convert a MIDI pitch, fractions allowed, to Hz (A4 = 69 = 440 Hz)."""
    return float(440.0 * 2.0 ** ((pitch - 69.0) / 12.0))


@dataclass(frozen=True)
class Key:
    """A tonic (0 to 11, C is 0) with a mode of `SCALES`."""

    tonic: int
    mode: str

    @property
    def name(self) -> str:
        """Plain name, such as "D minor"."""
        return f"{NOTE_NAMES[self.tonic]} {self.mode}"

    def pitch(self, degree: int, octave: int = 4) -> int:
        """Give the MIDI pitch of a scale degree; degrees below 0 or above 6 change octave."""
        scale = SCALES[self.mode]
        shift, step = divmod(degree, len(scale))
        return 12 * (octave + 1 + shift) + self.tonic + scale[step]

    def chord(self, degree: int, size: int = 3) -> tuple[int, ...]:
        """Give the scale degrees of the chord stacked in thirds on `degree`."""
        return tuple(degree + 2 * i for i in range(size))


def into_register(pitch: float, low: float, high: float) -> float:
    """Move a pitch by whole octaves into [low, high]; the range must span an octave."""
    while pitch < low:
        pitch += 12
    while pitch > high:
        pitch -= 12
    return pitch
