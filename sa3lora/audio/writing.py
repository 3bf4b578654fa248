"""Write audio files whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import secrets
import struct
from pathlib import Path
from typing import Final

import numpy as np
import soundfile
import torch
from torch import Tensor

from sa3lora.errors import AudioError

_WRITABLE: Final = {
    ".wav": ("WAV", "FLOAT"),  # exact, and peaks above 1 survive
    ".flac": ("FLAC", "PCM_24"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".aif": ("AIFF", "PCM_24"),
    ".aiff": ("AIFF", "PCM_24"),
}
_OPUS_RATES: Final = (8000, 12000, 16000, 24000, 48000)
_MP3_RATES: Final = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_TAGS: Final = frozenset(
    {"title", "artist", "album", "comment", "copyright", "date", "genre", "license"}
)


def write_audio(
    path: str | os.PathLike[str],
    audio: Tensor,
    sample_rate: int,
    *,
    tags: dict[str, str] | None = None,
) -> None:
    """Write a file complete or not at all, in the format of its suffix.

    WAV keeps every bit (float32). The other formats end at full scale, so louder peaks are refused
    there instead of clipped.

    Args:
        path: Where to write: .wav, .flac, .mp3, .ogg, .opus, .aif or .aiff.
        audio: (K, N).
        sample_rate: Its rate; Opus takes 8, 12, 16, 24 and 48 kHz.
        tags: Such as title, artist, comment, licence as `license`.

    Raises:
        AudioError: If the format, the rate or the samples do not fit, or the disk is full.
    """
    target = Path(path)
    payload = _encode(target, audio, sample_rate=sample_rate, tags=tags or {})
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        advice = "Free some space or write" if error.errno == errno.ENOSPC else "Write"
        raise AudioError(target, f"not written: {error.strerror}. {advice} elsewhere.") from error


def wav_bytes(audio: Tensor, sample_rate: int) -> bytes:
    """Encode a 16-bit WAV in memory, for a page or a log that plays sound.

    Args:
        audio: (K, N); what exceeds full scale is cut off there.
        sample_rate: Its rate.

    Returns:
        A whole WAV file.
    """
    buffer = io.BytesIO()
    samples = audio.detach().to("cpu", torch.float32).clamp(-1.0, 1.0).numpy().T
    soundfile.write(buffer, samples, sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _encode(path: Path, audio: Tensor, *, sample_rate: int, tags: dict[str, str]) -> memoryview:
    suffix = path.suffix.lower()
    if suffix not in _WRITABLE:
        raise AudioError(path, f"cannot write {suffix!r}; use one of {', '.join(_WRITABLE)}")
    if suffix == ".opus" and sample_rate not in _OPUS_RATES:
        raise AudioError(path, f"Opus has no {sample_rate} Hz; use .flac, or resample to 48000")
    if suffix == ".mp3" and sample_rate not in _MP3_RATES:
        raise AudioError(path, f"MP3 has no {sample_rate} Hz; use .flac, or resample to 44100")
    if unknown := sorted(set(tags) - _TAGS):
        raise AudioError(path, f"no tag {unknown[0]!r}; use some of {', '.join(sorted(_TAGS))}")
    samples = audio.detach().to("cpu", torch.float32).numpy().T
    if not np.isfinite(samples).all():
        raise AudioError(path, "not written: the audio has samples that are not finite numbers")
    peak = float(np.abs(samples).max(initial=0.0))
    if suffix != ".wav" and peak > 1.0:
        raise AudioError(path, f"peak {peak:.3f} would clip; lower the gain or write .wav")
    container, subtype = _WRITABLE[suffix]
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", sample_rate, samples.shape[1], format=container, subtype=subtype
    ) as file:
        for name, value in tags.items():
            setattr(file, name, value)
        file.write(samples)
    payload = buffer.getbuffer()
    if container == "WAV":
        _forget_the_time(payload)
    return payload


def _forget_the_time(wav: memoryview) -> None:
    """Zero the time of writing that libsndfile puts into a float WAV's PEAK chunk.

    Equal sound then gives equal bytes, and equal hashes, whenever it is written.
    """
    position = 12  # past "RIFF", size and "WAVE"
    while position + 8 <= len(wav):
        name, size = struct.unpack_from("<4sI", wav, position)
        if name == b"PEAK":
            struct.pack_into("<I", wav, position + 12, 0)
            return
        position += 8 + size + size % 2
