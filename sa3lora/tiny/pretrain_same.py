"""Pretraining of the embedded model's autoencoder on rendered pieces."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sa3lora.models.config_parse import parse_config
from sa3lora.models.same import SameAutoencoder
from sa3lora.recipe import OptimSection
from sa3lora.tiny.pool import PooledPiece
from sa3lora.tiny.same_start import start_as_pca
from sa3lora.tiny.shape import RATIO, SAMPLE_RATE, model_config
from sa3lora.training.loop import ResumableLoop

logger = logging.getLogger(__name__)

SEGMENT_LATENTS = 12
WAVE_WEIGHT = 0.05  # phases that 64 numbers cannot hold would only make the sound quieter
FFT_SIZES = (96, 192, 384, 768, 1536, 2048)
SIZES_A_STEP = 2  # all six in turn cost as much as the model itself
OPTIM = OptimSection(lr=1e-3, betas=(0.9, 0.98), schedule="cosine", warmup_steps=100)
LATENT_NOISE = 0.05  # of a latent's deviation: the decoder must bear the sampler's errors


def spectral_loss(
    made: Tensor, real: Tensor, sizes: Sequence[int] = FFT_SIZES, *, linear: float = 1.0
) -> Tensor:
    """Distance of short-time spectra at several resolutions, on middle and side.

    Args:
        made: Reconstruction, (B, 2, N).
        real: Original, same shape.
        sizes: Window lengths in samples.
        linear: Weight of the distance of magnitudes beside that of their logarithms. It helps a
            new decoder to find the peaks, but an uncertain one does best by it to stay quiet.
    """
    signals = []
    for audio in (made, real):
        left, right = audio[:, 0], audio[:, 1]
        signals.append(torch.cat([(left + right) / 2, (left - right) / 2]))
    total = made.new_zeros(())
    for size in sizes:
        window = torch.hann_window(size)
        a, b = (
            torch.stft(s, size, size // 3, window=window, return_complex=True).abs()
            for s in signals
        )
        scale = b.detach().pow(2).mean().sqrt() + 1e-4
        total = total + ((a + 1e-3).log() - (b + 1e-3).log()).abs().mean()
        total = total + linear * (a - b).abs().mean() / scale
    return total / len(sizes)


@lru_cache
def mel_filters(size: int, bands: int) -> Tensor:
    """Mel filterbank, (bands, size / 2 + 1)."""
    from librosa.filters import mel

    return torch.from_numpy(mel(sr=SAMPLE_RATE, n_fft=size, n_mels=bands))


def mel_loss(made: Tensor, real: Tensor, *, size: int = 1024, bands: int = 80) -> Tensor:
    """Mean distance of log-mel spectra, the measure by which the model card judges."""
    filters, window = mel_filters(size, bands), torch.hann_window(size)
    logs = []
    for audio in (made, real):
        spectra = torch.stft(
            audio.flatten(0, 1), size, size // 4, window=window, return_complex=True
        )
        logs.append((filters @ spectra.abs() + 1e-3).log())
    return (logs[0] - logs[1]).abs().mean()


def train_same(
    pieces: list[PooledPiece], folder: Path, *, max_steps: int, batch: int = 10, seed: int = 1
) -> SameAutoencoder:
    """Fit the autoencoder; resumes from the checkpoints in `folder`."""
    torch.manual_seed(seed)
    autoencoder = SameAutoencoder(parse_config(model_config()).same)
    generator = torch.Generator().manual_seed(seed)
    start_as_pca(autoencoder, draw_segments(pieces, 400, generator=generator))
    parameters = {
        name: p for name, p in autoencoder.named_parameters() if not name.startswith("bottleneck")
    }
    loop = ResumableLoop(
        parameters, optim=OPTIM, max_steps=max_steps, folder=folder,
        generators={"data": generator}, ema_decay=0.998,
    )  # fmt: skip
    loop.restore()
    while loop.step < max_steps:
        real = draw_segments(pieces, batch, generator=generator)
        loss, parts = same_loss(autoencoder, real, generator=generator)
        torch.autograd.backward(loss)
        update = loop.update()
        if update.step % 25 == 0:
            logger.info("same step %d %s lr %.2e", update.step, parts, update.lr)
        if update.step % 200 == 0 or update.step == max_steps:
            loop.save({})
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(loop.averages[name])
    return autoencoder


def refine_decoder(
    autoencoder: SameAutoencoder,
    pieces: list[PooledPiece],
    folder: Path,
    *,
    max_steps: int,
    batch: int = 10,
    seed: int = 2,
) -> None:
    """Train the decoder on, latents unchanged, by logarithms alone: for the right loudness."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(autoencoder.decoder.named_parameters())
    loop = ResumableLoop(
        parameters, optim=OPTIM, max_steps=max_steps, folder=folder,
        generators={"data": generator}, ema_decay=0.998,
    )  # fmt: skip
    loop.restore()
    while loop.step < max_steps:
        real = draw_segments(pieces, batch, generator=generator)
        with torch.no_grad():
            latents = autoencoder.encode(real)
        noise = torch.randn(latents.shape, generator=generator)
        made = autoencoder.decode(latents + LATENT_NOISE * noise)
        sizes = torch.randperm(len(FFT_SIZES), generator=generator)[:SIZES_A_STEP].tolist()
        spectral = spectral_loss(made, real, [FFT_SIZES[i] for i in sizes], linear=0.1)
        mel = mel_loss(made, real)
        torch.autograd.backward(spectral + 2 * mel)
        update = loop.update()
        if update.step % 25 == 0:
            logger.info("decoder step %d mel %.3f", update.step, float(mel.detach()))
        if update.step % 200 == 0 or update.step == max_steps:
            loop.save({})
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(loop.averages[name])


def same_loss(
    autoencoder: SameAutoencoder, real: Tensor, *, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Distance of reconstructions from standardised, slightly noisy latents."""
    raw = autoencoder.encode(real)
    # by the batch now, by `standardise` in the end: a weak code could not be heard over the tokens
    deviation = raw.std(dim=(0, 2), keepdim=True) + 1e-4
    latents = (raw - raw.mean(dim=(0, 2), keepdim=True)) / deviation
    noise = torch.randn(latents.shape, generator=generator)
    made = autoencoder.decode(latents + LATENT_NOISE * noise)
    sizes = torch.randperm(len(FFT_SIZES), generator=generator)[:SIZES_A_STEP].tolist()
    spectral = spectral_loss(made, real, [FFT_SIZES[i] for i in sizes])
    wave = F.l1_loss(made, real) / (real.abs().mean() + 1e-3)
    mel = mel_loss(made, real)
    loss = spectral + mel + WAVE_WEIGHT * wave
    parts = {"spectral": spectral, "mel": mel, "wave": wave}
    return loss, {name: round(float(value.detach()), 4) for name, value in parts.items()}


def draw_segments(pieces: list[PooledPiece], batch: int, *, generator: torch.Generator) -> Tensor:
    """Cut random segments, (B, 2, N), with random gain, polarity and side."""
    length = SEGMENT_LATENTS * RATIO
    out = torch.zeros(batch, 2, length)
    which = torch.randint(len(pieces), (batch,), generator=generator)
    place, gain = torch.rand(2, batch, generator=generator)
    turn = torch.randint(4, (batch,), generator=generator)
    for row in range(batch):
        sound = pieces[int(which[row])].audio
        start = int(place[row] * max(sound.shape[1] - length // 2, 1))
        cut = torch.from_numpy(np.array(sound[:, start : start + length])).float() / 32767
        cut = cut.flip(0) if turn[row] & 1 else cut
        cut = -cut if turn[row] & 2 else cut
        out[row, :, : cut.shape[1]] = cut * math.exp(-1.2 * float(gain[row]))
    return out


@torch.no_grad()
def standardise(autoencoder: SameAutoencoder, pieces: list[PooledPiece], *, count: int) -> None:
    """Put into the bottleneck the scaling to zero mean and unit deviation that training did."""
    raw = []
    for piece in pieces[:count]:
        audio = torch.from_numpy(np.array(piece.audio)).float()[None] / 32767
        raw.append(autoencoder.encode(audio)[0])
    every = torch.cat(raw, dim=1)
    std = every.std(dim=1) + 1e-4
    autoencoder.bottleneck.scaling_factor.copy_((1 / std)[None, :, None])
    autoencoder.bottleneck.bias.copy_((-every.mean(dim=1) / std)[None, :, None])
