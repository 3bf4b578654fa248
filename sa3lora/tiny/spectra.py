"""Short-time spectra and their logarithms, for pretraining and for measures of the result."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from sa3lora.tiny.shape import SAMPLE_RATE


@lru_cache
def mel_filters(size: int, bands: int) -> Tensor:
    """Mel filterbank of unit peaks, (bands, size / 2 + 1)."""
    from librosa.filters import mel

    return torch.from_numpy(mel(sr=SAMPLE_RATE, n_fft=size, n_mels=bands, norm=None))


def magnitudes(audio: Tensor, size: int) -> Tensor:
    """Give magnitudes of every channel, a full-scale sine being 1.

    Args:
        audio: (B, K, N) at the embedded model's rate.
        size: Window length in samples; windows overlap by three quarters.

    Returns:
        (B K, size / 2 + 1, frames).
    """
    window = torch.hann_window(size)
    spectra = torch.stft(audio.flatten(0, 1), size, size // 4, window=window, return_complex=True)
    return spectra.abs() / (window.sum() / 2)


def log_mel(magnitude: Tensor, bands: int, *, floor: float) -> Tensor:
    """Natural logarithm of mel amplitudes over a floor, (B K, bands, frames).

    Args:
        magnitude: What `magnitudes` gave.
        bands: Number of mel bands.
        floor: Amplitude that is added, full scale being 1.
    """
    size = 2 * (magnitude.shape[1] - 1)
    power = mel_filters(size, bands) @ magnitude.square()
    return ((power + 1e-12).sqrt() + floor).log()
