"""Pretraining of the embedded model's autoencoder on rendered pieces."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sa3lora.models.config_parse import parse_config
from sa3lora.models.same import SameAutoencoder
from sa3lora.recipe import OptimSection
from sa3lora.tiny.pool import PooledPiece
from sa3lora.tiny.same_start import start_as_pca
from sa3lora.tiny.shape import RATIO, model_config
from sa3lora.tiny.spectra import log_mel, magnitudes
from sa3lora.training.loop import ResumableLoop

logger = logging.getLogger(__name__)

SEGMENT_LATENTS = 12
CHUNK = 2 * RATIO  # segments begin where chunks do, as whole pieces have them
# Window lengths with their number of mel bands; two of them a step cost as much as the model.
RESOLUTIONS = ((128, 20), (256, 32), (512, 64), (1024, 96), (2048, 128))
RESOLUTIONS_A_STEP = 2
WAVE_WEIGHT, LINEAR_WEIGHT, MEL_WEIGHT = 1.0, 1.0, 2.0
OPTIM = OptimSection(lr=1.5e-3, betas=(0.9, 0.98), schedule="cosine", warmup_steps=100)
REFINING = OptimSection(lr=7e-4, betas=(0.9, 0.98), schedule="cosine", warmup_steps=50)
LATENT_NOISE = 0.05  # of a latent's deviation: the decoder must bear the sampler's errors
# 60 dB below full scale. What is quieter does not count: a decoder that must fear the logarithm of
# its faintest noise does best to stay quiet everywhere.
FLOOR = 1e-3


def spectral_loss(made: Tensor, real: Tensor, resolutions: Sequence[tuple[int, int]]) -> Tensor:
    """Distance of short-time spectra: logarithms, mel logarithms, and magnitudes.

    Args:
        made: Reconstruction, (B, 2, N).
        real: Original, same shape.
        resolutions: Window lengths in samples with their number of mel bands.
    """
    total = made.new_zeros(())
    for size, bands in resolutions:
        a, b = magnitudes(made, size), magnitudes(real, size)
        logs = ((a + FLOOR).log() - (b + FLOOR).log()).abs().mean()
        mels = (log_mel(a, bands, floor=FLOOR) - log_mel(b, bands, floor=FLOOR)).abs().mean()
        scale = b.pow(2).sum(dim=(1, 2)).sqrt() + 1e-2
        linear = ((a - b).pow(2).sum(dim=(1, 2)).sqrt() / scale).mean()
        total = total + logs + MEL_WEIGHT * mels + LINEAR_WEIGHT * linear
    return total / len(resolutions)


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
    batch: int = 12,
    seed: int = 2,
) -> None:
    """Train the decoder on while the latents, and so the transformer's data, stay the same."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(autoencoder.decoder.named_parameters())
    loop = ResumableLoop(
        parameters, optim=REFINING, max_steps=max_steps, folder=folder,
        generators={"data": generator}, ema_decay=0.998,
    )  # fmt: skip
    loop.restore()
    while loop.step < max_steps:
        real = draw_segments(pieces, batch, generator=generator)
        with torch.no_grad():
            latents = autoencoder.encode(real)
        loss, parts = decoding_loss(autoencoder, latents, real, generator=generator)
        torch.autograd.backward(loss)
        update = loop.update()
        if update.step % 25 == 0:
            logger.info("decoder step %d %s lr %.2e", update.step, parts, update.lr)
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
    return decoding_loss(autoencoder, latents, real, generator=generator)


def decoding_loss(
    autoencoder: SameAutoencoder, latents: Tensor, real: Tensor, *, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Distance between sound (B, 2, N) and what becomes of its latents (B, C, T) with noise."""
    noise = torch.randn(latents.shape, generator=generator)
    made = autoencoder.decode(latents + LATENT_NOISE * noise)
    chosen = torch.randperm(len(RESOLUTIONS), generator=generator)[:RESOLUTIONS_A_STEP].tolist()
    spectral = spectral_loss(made, real, [RESOLUTIONS[i] for i in chosen])
    power = real.pow(2).mean(dim=(1, 2)) + 1e-5
    wave = ((made - real).pow(2).mean(dim=(1, 2)) / power).mean()
    parts = {"spectral": spectral, "wave": wave}
    loss = spectral + WAVE_WEIGHT * wave
    return loss, {name: round(float(value.detach()), 4) for name, value in parts.items()}


def draw_segments(pieces: list[PooledPiece], batch: int, *, generator: torch.Generator) -> Tensor:
    """Cut random segments, (B, 2, N), with a little random gain.

    Neither polarity nor sides are turned: every sound has its own, and may be learned with it.
    """
    length = SEGMENT_LATENTS * RATIO
    out = torch.zeros(batch, 2, length)
    which = torch.randint(len(pieces), (batch,), generator=generator)
    place, gain = torch.rand(2, batch, generator=generator)
    for row in range(batch):
        sound = pieces[int(which[row])].audio
        start = int(place[row] * max(sound.shape[1] - length // 2, 1)) // CHUNK * CHUNK
        cut = torch.from_numpy(np.array(sound[:, start : start + length])).float() / 32767
        out[row, :, : cut.shape[1]] = cut * math.exp(-0.4 * float(gain[row]))
    return out


@torch.no_grad()
def standardise(autoencoder: SameAutoencoder, pieces: list[PooledPiece], *, batches: int) -> None:
    """Put into the bottleneck the scaling to zero mean and unit deviation that training did.

    From segments drawn as in training: pieces at full gain deviate more, and a decoder that saw
    its latents shrunk by that would be too quiet.
    """
    generator = torch.Generator().manual_seed(0)
    means, deviations = [], []
    for _ in range(batches):
        raw = autoencoder.encode(draw_segments(pieces, 20, generator=generator))
        means.append(raw.mean(dim=(0, 2)))
        deviations.append(raw.std(dim=(0, 2)) + 1e-4)
    mean, std = torch.stack(means).mean(dim=0), torch.stack(deviations).mean(dim=0)
    autoencoder.bottleneck.scaling_factor.copy_((1 / std)[None, :, None])
    autoencoder.bottleneck.bias.copy_((-mean / std)[None, :, None])
