"""Decode m4a (AAC, ALAC) through PyAV, which only the `m4a` extra installs."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from sa3lora.audio.containers import MEND
from sa3lora.errors import AudioError

_SLACK: Final = 4 * 1024  # samples; AAC frames hold 1024, and delay is counted differently


def probe(path: str | os.PathLike[str]) -> tuple[int, int, int, dict[str, str]]:
    """Look at a file without decoding it.

    Args:
        path: The file.

    Returns:
        Sample rate, channels, samples and tags.

    Raises:
        AudioError: If it holds no audio, or PyAV is not installed.
    """
    with _opened(path) as (container, stream):
        frames = _num_samples(path, stream)
        tags = {str(k).lower(): str(v) for k, v in container.metadata.items()}
        return int(stream.rate), int(stream.channels), frames, tags


def decode(path: str | os.PathLike[str]) -> tuple[np.ndarray[Any, Any], int]:
    """Decode a whole file.

    Args:
        path: The file.

    Returns:
        Samples (N, K) float32 and their rate.

    Raises:
        AudioError: If it ends before its header says, holds no audio, or PyAV is not installed.
    """
    with _opened(path) as (container, stream):
        expected = _num_samples(path, stream)
        resampler = importlib.import_module("av").AudioResampler(format="fltp")
        blocks = [
            block.to_ndarray()
            for frame in container.decode(stream)
            for block in resampler.resample(frame)
        ]
        rate = int(stream.rate)
    samples = np.concatenate(blocks, axis=1).T if blocks else np.zeros((0, 1), np.float32)
    if len(samples) + _SLACK < expected or len(samples) == 0:
        missing = expected - len(samples)
        raise AudioError(path, f"truncated: {missing} of {expected} samples are missing", MEND)
    return samples, rate


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    try:
        av = importlib.import_module("av")
    except ModuleNotFoundError as error:
        reason = "m4a needs PyAV: pip install sa3lora[m4a], or convert the file to .flac"
        raise AudioError(path, reason) from error
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.audio:
                raise AudioError(path, "no audio stream", MEND)
            yield container, container.streams.audio[0]
    except av.error.FFmpegError as error:
        reason = f"truncated, or no audio stream that can be decoded ({error.strerror})"
        raise AudioError(path, reason, MEND) from error


def _num_samples(path: str | os.PathLike[str], stream: Any) -> int:
    if stream.duration is None:
        raise AudioError(path, "does not say how long it is; encode it again")
    num_samples: int = round(stream.duration * stream.time_base * stream.rate)
    return num_samples
