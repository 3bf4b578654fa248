"""How long an MP3 is, for files that do not say so.

Encoders write an index into the first frame (Xing, Info or VBRI). Without one libsndfile guesses
from the size of the file and the first frames, which is right where all frames are of one size and
may be off by half where they are not; what lies behind the guess is never read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_LONGEST_FRAME: Final = 2048  # bytes, with room to spare
# ISO 11172-3 and 13818-3, layer III, by the number in the header: kbit/s and Hz
_KBPS_1: Final = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBPS_2: Final = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES: Final = (44100, 48000, 32000)
_HALVINGS: Final = {3: 1, 2: 2, 0: 4}  # of the rate, by the number of the MPEG version
_LAYER_III: Final = 1


def says_its_length(path: str | os.PathLike[str]) -> bool:
    """Tell whether an MP3 begins with an index."""
    with open(path, "rb") as file:
        file.seek(_first_frame(file.read(10)))
        first = file.read(_LONGEST_FRAME)
    return any(name in first for name in (b"Xing", b"Info", b"VBRI"))


def count_samples(path: str | os.PathLike[str]) -> int:
    """Count the samples of an MP3 frame by frame, without decoding it."""
    content = Path(path).read_bytes()
    at, samples = _first_frame(content[:10]), 0
    while (at := content.find(b"\xff", at)) >= 0:
        size, held = _frame(content[at : at + 4])
        samples += held
        at += size
    return samples


def _first_frame(head: bytes) -> int:
    """Give where tags at the beginning end."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    shifts = (21, 14, 7, 0)
    return 10 + sum((b & 0x7F) << shift for b, shift in zip(head[6:], shifts, strict=True))


def _frame(head: bytes) -> tuple[int, int]:
    """Give bytes and samples of a frame; (1, 0) for what is none."""
    nothing = 1, 0
    if len(head) < 4 or head[1] & 0xE0 != 0xE0 or (head[1] >> 1) & 3 != _LAYER_III:
        return nothing
    halvings, rate, kbps = _HALVINGS.get((head[1] >> 3) & 3), (head[2] >> 2) & 3, head[2] >> 4
    if halvings is None or rate == len(_RATES) or not 0 < kbps < len(_KBPS_1):
        return nothing
    samples = 1152 if halvings == 1 else 576
    table = _KBPS_1 if halvings == 1 else _KBPS_2
    padding = (head[2] >> 1) & 1
    return samples // 8 * 1000 * table[kbps] // (_RATES[rate] // halvings) + padding, samples
