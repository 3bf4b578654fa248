"""What the small CLAP hears: log-mel frames, onset periodicity and pitch classes.

Silence maps to exactly zero everywhere, so that zero padding adds nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Power below which a mel band counts as silent, for full-scale audio in [-1, 1].
_FLOOR = 1e-3
_ONSET_BANDS = 4
_MIN_PERIOD_S, _MAX_PERIOD_S = 0.18, 2.0


@dataclass(frozen=True)
class FrameSettings:
    """Analysis frames: a Hann window of `n_fft` samples every `hop` samples."""

    sample_rate: int = 16000
    n_fft: int = 1024
    hop: int = 320
    num_mels: int = 64
    chroma_n_fft: int = 4096
    chroma_hop: int = 1600

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Count the frames whose centre lies inside the sound."""
        return torch.div(num_samples - 1, self.hop, rounding_mode="floor") + 1

    @property
    def lags(self) -> list[int]:
        """Lags of the onset autocorrelation in frames, about 4 % apart."""
        rate = self.sample_rate / self.hop
        count = 1 + math.ceil(math.log(_MAX_PERIOD_S / _MIN_PERIOD_S) / math.log(1.04))
        ratio = _MAX_PERIOD_S / _MIN_PERIOD_S
        periods = [_MIN_PERIOD_S * ratio ** (i / (count - 1)) for i in range(count)]
        return sorted({round(period * rate) for period in periods})

    @property
    def num_pooled(self) -> int:
        """Width of the pooled features: onset periodicity a band group and 12 pitch classes."""
        return _ONSET_BANDS * len(self.lags) + 12


def _mel(hz: Tensor) -> Tensor:
    return 2595.0 * torch.log10(1.0 + hz / 700.0)


def mel_filters(settings: FrameSettings, *, low_hz: float = 40.0) -> Tensor:
    """Build triangular filters of equal height on the mel scale of O'Shaughnessy (1987)."""
    top = _mel(torch.tensor(settings.sample_rate / 2))
    edges = torch.linspace(float(_mel(torch.tensor(low_hz))), float(top), settings.num_mels + 2)
    edges = 700.0 * (10 ** (edges / 2595.0) - 1.0)
    bins = torch.linspace(0, settings.sample_rate / 2, settings.n_fft // 2 + 1)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp_min(0)


def chroma_filters(settings: FrameSettings) -> Tensor:
    """Share the bins from 100 to 2000 Hz among the 12 pitch classes, C first."""
    bins = torch.linspace(0, settings.sample_rate / 2, settings.chroma_n_fft // 2 + 1)
    used = (bins >= 100) & (bins <= 2000)
    semitone = 12 * torch.log2(bins.clamp_min(1) / 440.0) + 9
    distance = torch.remainder(semitone - torch.arange(12)[:, None] + 6, 12) - 6
    return torch.exp(-0.5 * (distance / 0.35) ** 2) * used


def power_frames(audio: Tensor, *, n_fft: int, hop: int) -> Tensor:
    """Give the power spectrum of frames centred every `hop` samples: (B, F, T)."""
    frames = torch.nn.functional.pad(audio, (n_fft // 2, n_fft // 2)).unfold(-1, n_fft, hop)
    frames = frames[:, : (audio.shape[-1] - 1) // hop + 1]
    window = torch.hann_window(n_fft, dtype=audio.dtype, device=audio.device)
    return torch.view_as_real(torch.fft.rfft(frames * window)).square().sum(dim=-1).transpose(1, 2)


def log_bands(power: Tensor) -> Tensor:
    """Compress band power to roughly 0 to 3; silence is exactly 0."""
    return torch.log1p(power / _FLOOR) / 5.0


def onset_periodicity(mel: Tensor, mask: Tensor, *, lags: list[int]) -> Tensor:
    """Correlate the onset strength with itself at each lag, (B, bands * lags).

    Args:
        mel: Log-mel frames (B, M, T), zero where `mask` is False.
        mask: True on real frames, (B, T).
        lags: Lags in frames; one beyond the sound gives 0.
    """
    rise = (mel[:, :, 1:] - mel[:, :, :-1]).clamp_min(0)
    both = (mask[:, 1:] & mask[:, :-1])[:, None]
    strength = rise.reshape(len(rise), _ONSET_BANDS, -1, rise.shape[2]).mean(dim=2)
    count = both.sum(dim=2, keepdim=True).clamp_min(1)
    strength = (strength - (strength * both).sum(dim=2, keepdim=True) / count) * both
    energy = strength.square().sum(dim=2).clamp_min(1e-4)
    # One fixed size, so that padding moves no bit of the transform's length.
    size = 2 * strength.shape[2]
    spectrum = torch.fft.rfft(strength, n=size)
    product = torch.fft.irfft(spectrum.abs().square(), n=size)
    wanted = torch.tensor(lags, device=mel.device)
    inside = wanted < strength.shape[2]
    picked = product[:, :, wanted.clamp_max(strength.shape[2] - 1)] * inside
    relative: Tensor = picked / energy[:, :, None]
    return relative.flatten(1)


def pitch_classes(chroma: Tensor) -> Tensor:
    """Give the share of each pitch class over the whole sound, (B, 12); silence gives 0."""
    total = chroma.sum(dim=2)
    shares: Tensor = total / total.norm(dim=1, keepdim=True).clamp_min(1e-2)
    return shares
