"""Look at audio files and decode them, naming whatever is wrong with one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile
import torch
from torch import Tensor

from sa3lora.audio import m4a
from sa3lora.audio.containers import MEND, ends_early
from sa3lora.audio.convert import resample, to_channels
from sa3lora.audio.mp3 import count_samples, says_its_length
from sa3lora.errors import AudioError

_log = logging.getLogger(__name__)

AUDIO_EXTENSIONS: Final = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff", ".m4a"}
)
_MP3_SLACK: Final = 1152  # samples; some encoders count their info frame as sound
# Real tracks whose page positions count a little more sound than there is; a file that was cut is
# found by its last page.
_OGG_SLACK_S: Final = 0.5
_MP3_GUESS: Final = 0.01  # how far a length may be off that was guessed from the size of a file
_NO_LENGTH: Final = 1 << 48  # libsndfile reports about 2^63 where a stream does not say


@dataclass(frozen=True)
class AudioInfo:
    """What a file says about itself, before anything is decoded."""

    sample_rate: int
    num_channels: int
    num_samples: int
    duration_s: float
    format: str
    tags: dict[str, str]


def probe_audio(path: str | os.PathLike[str]) -> AudioInfo:
    """Look at a file without decoding it.

    A cut WAV, AIFF, Ogg or FLAC file is found here; a cut MP3 only by `read_audio`.

    Args:
        path: The file.

    Returns:
        Its facts and the tags it carries.

    Raises:
        AudioError: If the file is missing, empty, cut or holds no audio.
    """
    with _readable(path):
        if _is_m4a(path):
            rate, channels, frames, tags = m4a.probe(path)
            return AudioInfo(rate, channels, frames, frames / rate, "M4A", tags)
        with soundfile.SoundFile(path) as file:
            _check_length(path, file)
            if file.format == "FLAC":  # it has no size to compare, so visit its end
                file.seek(file.frames - 1)
                file.read(1)
            return AudioInfo(
                sample_rate=file.samplerate,
                num_channels=file.channels,
                num_samples=file.frames,
                duration_s=file.frames / file.samplerate,
                format=f"{file.format} {file.subtype}",
                tags=dict(file.copy_metadata()),
            )


def read_audio(
    path: str | os.PathLike[str],
    *,
    sample_rate: int | None = None,
    num_channels: int | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> tuple[Tensor, int]:
    """Decode a file or a part of it.

    Args:
        path: The file.
        sample_rate: Resample to this; None keeps the file's own.
        num_channels: Convert to this many, see `to_channels`; None keeps the file's own.
        start_s: Where to begin; it must lie inside the file.
        duration_s: How much to read; a part that runs past the end is as long as there is audio.

    Returns:
        Audio (K, N) float32 and its rate.

    Raises:
        AudioError: If the file cannot be read to the end of that part.
    """
    with _readable(path):
        if _is_m4a(path):
            samples, rate = m4a.decode(path)
            start = _first_sample(path, start_s, rate=rate, total=len(samples))
            samples = samples[start : _end(start, duration_s, rate=rate, total=len(samples))]
        else:
            samples, rate = _decode(path, start_s, duration_s=duration_s)
    if not np.isfinite(samples).all():
        raise AudioError(path, "has samples that are not finite numbers", MEND)
    audio = torch.from_numpy(np.ascontiguousarray(samples.T))
    if num_channels is not None:
        audio = to_channels(audio, num_channels)
    if sample_rate is None or sample_rate == rate:
        return audio, rate
    return resample(audio, rate, sample_rate), sample_rate


def _is_m4a(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix.lower() == ".m4a"


@contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn everything that can go wrong with a file into an `AudioError` that names it."""
    try:
        if os.path.isdir(path):
            raise AudioError(path, "is a folder", "Name one of its files.")
        if os.path.getsize(path) == 0:
            raise AudioError(path, "0 bytes", MEND)
        if ends_early(path):
            raise AudioError(path, "truncated: it ends before its header says", MEND)
        yield
    except FileNotFoundError as error:
        raise AudioError(path, "no such file", "Check the path.") from error
    except OSError as error:
        raise AudioError(
            path, f"cannot be read: {error.strerror or error}", "Check the path."
        ) from error
    except soundfile.LibsndfileError as error:
        text = str(error)
        if "lost sync" in text or "psf_fseek" in text:
            raise AudioError(
                path, "truncated or damaged: the decoder lost its place", MEND
            ) from error
        # Its own words are left out: it tells of a missing file where an MP3 holds only text.
        raise AudioError(path, "no audio stream that can be decoded", MEND) from error


def _check_length(path: str | os.PathLike[str], file: Any) -> None:
    if file.frames > _NO_LENGTH:
        raise AudioError(path, "does not say how long it is; encode it again")
    if file.frames < 1:
        raise AudioError(path, "no audio stream: it holds 0 samples", MEND)
    if file.format == "MP3" and not says_its_length(path):
        counted = count_samples(path)
        if abs(counted - file.frames) > _MP3_SLACK + _MP3_GUESS * counted:
            raise AudioError(
                path,
                f"an MP3 without an index: {file.frames} of its {counted} samples would be read",
                "Give it an index: ffmpeg -i IN.mp3 -codec copy OUT.mp3",
            )


def _decode(
    path: str | os.PathLike[str], start_s: float, *, duration_s: float | None
) -> tuple[np.ndarray[Any, Any], int]:
    with soundfile.SoundFile(path) as file:
        _check_length(path, file)
        rate, total = int(file.samplerate), int(file.frames)
        start = _first_sample(path, start_s, rate=rate, total=total)
        wanted = _end(start, duration_s, rate=rate, total=total) - start
        if file.format in ("WAV", "WAVEX", "FLAC", "AIFF"):
            file.seek(start)
            samples = file.read(wanted, dtype="float32", always_2d=True)
        else:
            # Seeking is not exact in MP3 and Vorbis: decode up to there.
            samples = file.read(start + wanted, dtype="float32", always_2d=True)[start:]
        missing = wanted - len(samples)
        slack = 0.0
        if file.format == "OGG":
            slack = _OGG_SLACK_S * rate
        elif file.format == "MP3" and missing > _MP3_SLACK and not says_its_length(path):
            slack = _MP3_GUESS * total
        if 0 < missing <= slack:
            _log.warning(
                "%s: %d of %d samples are missing at the end, silence takes their place",
                path, missing, total,
            )  # fmt: skip
            samples = np.pad(samples, ((0, missing), (0, 0)))
        elif missing > (_MP3_SLACK if file.format == "MP3" else 0):
            raise AudioError(path, f"truncated: {missing} of {total} samples are missing", MEND)
    return samples, rate


def _first_sample(path: str | os.PathLike[str], start_s: float, *, rate: int, total: int) -> int:
    start = round(start_s * rate)
    if not 0 <= start < total:
        raise AudioError(path, f"has {total / rate:.2f} s, so no part starts at {start_s:g} s")
    return start


def _end(start: int, duration_s: float | None, *, rate: int, total: int) -> int:
    return total if duration_s is None else min(total, start + round(duration_s * rate))
