"""Encoding and decoding long audio in blocks.

Both autoencoders see only a few latents to each side, so blocks with just that halo give exactly
the unblocked result at almost no extra work. The official overlapping blocks compute 1.3 to 2 times
as much and only approximate it; they remain for seed-for-seed parity with the official code.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sa3lora.models.same import Resampler, SameAutoencoder

BLOCK_LATENTS = 512
OFFICIAL_CHUNK, OFFICIAL_OVERLAP = 128, 32


def halo(resampler: Resampler) -> int:
    """Latents on each side that a latent's result depends on."""
    config = resampler.config
    if config.window is None:
        return resampler.alignment  # the chunk that the shifted half reaches into
    return config.depth * config.window + (1 if config.conv_mapping else 0)


def encode_audio(
    autoencoder: SameAutoencoder,
    audio: Tensor,
    *,
    block: int = BLOCK_LATENTS,
    official: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Encode audio of any length, (B, K, N), to latents (B, C, ceil(N / ratio)).

    Args:
        autoencoder: The model.
        audio: At the model's rate and channels.
        block: Latents of one block; memory grows with it, the result does not change.
        official: Use the official blocks of 128 latents with 32 overlap.
        generator: Source of the encoder's official noise, if it has any; None for no noise.
    """
    ratio = autoencoder.downsampling_ratio
    total = -(-audio.shape[-1] // ratio)
    if official:
        if audio.shape[-1] >= OFFICIAL_CHUNK * ratio:
            return encode_official(autoencoder, audio, generator=generator)
        return autoencoder.encode(audio, generator=generator)[..., :total]
    coder = autoencoder.encoder
    noise = _per_item(autoencoder.token_noise(coder, audio.shape[0], total, generator), audio)
    out = []
    for start, stop, low, high in _blocks(total, block, coder.resampler):
        part = audio[..., low * ratio : high * ratio]
        z = autoencoder.encode_with_noise(part, _noise_of(noise, total, low, high))
        out.append(z[..., start - low : stop - low])
    return torch.cat(out, dim=-1)


def decode_latents(
    autoencoder: SameAutoencoder,
    latents: Tensor,
    *,
    block: int = BLOCK_LATENTS,
    official: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Decode latents of any length, (B, C, T), to audio (B, K, T * ratio).

    Arguments as in `encode_audio`. With a generator the official noise is drawn for the whole clip
    first, so that the block size does not change the result.
    """
    ratio, total = autoencoder.downsampling_ratio, latents.shape[-1]
    if official:
        if total >= OFFICIAL_CHUNK:
            return decode_official(autoencoder, latents, generator=generator)
        return autoencoder.decode(latents, generator=generator)[..., : total * ratio]
    coder = autoencoder.decoder
    z = autoencoder.add_bottleneck_noise(latents, generator)
    noise = _per_item(autoencoder.token_noise(coder, z.shape[0], total, generator), z)
    out = []
    for start, stop, low, high in _blocks(total, block, coder.resampler):
        part = autoencoder.decode_with_noise(z[..., low:high], _noise_of(noise, total, low, high))
        out.append(part[..., (start - low) * ratio : (stop - low) * ratio])
    return torch.cat(out, dim=-1)


def _blocks(total: int, block: int, resampler: Resampler) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start, stop) to keep and (low, high) to compute, in latents.

    Starts are multiples of the attention chunk, so that each block is cut like the whole.
    """
    align, margin = resampler.alignment, halo(resampler)
    step = max(block - block % align, align)
    for start in range(0, total, step):
        stop = min(start + step, total)
        yield start, stop, max(start - margin, 0), min(stop + margin, total)


def _per_item(noise: Tensor | None, batch_like: Tensor) -> Tensor | None:
    return None if noise is None else noise.reshape(batch_like.shape[0], -1, *noise.shape[1:])


def _noise_of(noise: Tensor | None, total: int, low: int, high: int) -> Tensor | None:
    """Cut the noise, (B, padded latents, new, E), of latents `low` to `high`."""
    if noise is None:
        return None
    end = high if high < total else noise.shape[1]  # the last block is padded like the whole
    return noise[:, low:end].flatten(0, 1)


def encode_official(
    autoencoder: SameAutoencoder,
    audio: Tensor,
    *,
    chunk: int = OFFICIAL_CHUNK,
    overlap: int = OFFICIAL_OVERLAP,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Encode in the official overlapping blocks; surplus samples after the last latent are lost.

    Args:
        autoencoder: The model.
        audio: At least `chunk` latents long, (B, K, N).
        chunk: Latents of a block.
        overlap: Latents that neighbouring blocks share.
        generator: Source of the official noise, drawn anew for each block.

    Returns:
        Latents, (B, C, N // ratio).
    """
    ratio, samples = autoencoder.downsampling_ratio, audio.shape[-1]
    total = samples // ratio
    out = audio.new_zeros((audio.shape[0], autoencoder.config.latent_dim, total))
    last = samples - chunk * ratio
    starts = list(range(0, last + 1, (chunk - overlap) * ratio))
    if starts[-1] != last:
        starts.append(last)
    for index, start in enumerate(starts):
        z = autoencoder.encode(audio[..., start : start + chunk * ratio], generator=generator)
        at = total - chunk if index == len(starts) - 1 else start // ratio
        _place(out, z, at=at, chunk=chunk, overlap=overlap, unit=1, end=index == len(starts) - 1)
    return out


def decode_official(
    autoencoder: SameAutoencoder,
    latents: Tensor,
    *,
    chunk: int = OFFICIAL_CHUNK,
    overlap: int = OFFICIAL_OVERLAP,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Decode in the official overlapping blocks; arguments as in `encode_official`."""
    ratio, total = autoencoder.downsampling_ratio, latents.shape[-1]
    channels = autoencoder.config.audio_channels
    out = latents.new_zeros((latents.shape[0], channels, total * ratio))
    starts = list(range(0, total - chunk + 1, chunk - overlap))
    if starts[-1] != total - chunk:
        starts.append(total - chunk)
    for index, start in enumerate(starts):
        part = autoencoder.decode(latents[..., start : start + chunk], generator=generator)
        end = index == len(starts) - 1
        _place(out, part, at=start, chunk=chunk, overlap=overlap, unit=ratio, end=end)
    return out


def _place(
    out: Tensor, part: Tensor, *, at: int, chunk: int, overlap: int, unit: int, end: bool
) -> None:
    """Write the trusted middle of a block; later blocks overwrite earlier ones."""
    quarter = overlap // 2
    low = 0 if at == 0 else quarter
    high = chunk if end else chunk - quarter
    out[..., (at + low) * unit : (at + high) * unit] = part[..., low * unit : high * unit]
