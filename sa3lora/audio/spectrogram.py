"""Pictures of sounds: mel bands over seconds, their level in dB on one scale for all.

Levels are absolute, 0 dB being a sine of full scale, so that a base and its adapter, or two steps
of a run, can be compared by eye: a quieter sound is a darker picture.
"""

from __future__ import annotations

import io
import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, pad

_BANDS = 128
_WINDOW_S = 0.046  # 2048 samples at 44.1 kHz: narrower would leave the lowest bands without a bin
_COLUMNS = 600  # about the pixels of the picture
_LOWEST_DB = -90.0
_HIGHEST_DB = 0.0
_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000, 16000)


def mel_levels(audio: Tensor, sample_rate: int, *, columns: int = _COLUMNS) -> Tensor:
    """Measure the level of mel bands over time, the mean power of the channels.

    Every sample counts, however long the sound: frames are averaged into columns, none is left
    out. Channels of opposite phase do not cancel each other.

    Args:
        audio: (K, N), full scale being 1.
        sample_rate: Hz.
        columns: At most so many points in time.

    Returns:
        dB, (bands, columns), lowest band first, none below -90.
    """
    window = torch.hann_window(_window_samples(sample_rate))
    size = len(window)
    sound = pad(audio.detach().cpu().float(), (0, max(0, size - audio.shape[1])))
    spectra = torch.stft(
        sound, size, size // 2, window=window, pad_mode="constant", return_complex=True
    )
    power = (spectra.abs() / (window.sum() / 2)).square().mean(dim=0)
    bands = _filters(sample_rate, size) @ power
    if bands.shape[1] > columns:
        bands = adaptive_avg_pool1d(bands, columns)
    return (10 * bands.clamp(min=1e-12).log10()).clamp(min=_LOWEST_DB)


def spectrogram_png(audio: Tensor, sample_rate: int) -> bytes:
    """Draw a sound (K, N) as a PNG with its axes: seconds, Hz on the mel scale, dB."""
    from librosa import hz_to_mel
    from matplotlib.figure import Figure

    highest = float(hz_to_mel(sample_rate / 2))
    half = highest / (_BANDS + 1) / 2  # band n has its centre at (n + 1) of _BANDS + 1 parts
    figure = Figure(figsize=(8, 3), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(
        mel_levels(audio, sample_rate).numpy(),
        origin="lower", aspect="auto", cmap="magma", vmin=_LOWEST_DB, vmax=_HIGHEST_DB,
        extent=(0, audio.shape[1] / sample_rate, half, highest - half),
    )  # fmt: skip
    ticks = [hz for hz in _TICKS_HZ if hz <= sample_rate / 2]
    axis.set_yticks([float(hz_to_mel(hz)) for hz in ticks], [f"{hz:,}" for hz in ticks])
    axis.set_ylim(half, highest - half)
    axis.set_xlabel("seconds")
    axis.set_ylabel("Hz, mel scale")
    figure.colorbar(image, label="dB of a full-scale sine", pad=0.01)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _window_samples(sample_rate: int) -> int:
    return int(2 ** round(math.log2(_WINDOW_S * sample_rate)))


def _filters(sample_rate: int, size: int) -> Tensor:
    from librosa.filters import mel

    return torch.from_numpy(mel(sr=sample_rate, n_fft=size, n_mels=_BANDS, norm=None))
