"""Encoding planned clips to latents, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from datasets_prep.plan import PlannedClip
from sa3lora.audio import read_audio
from sa3lora.errors import AudioError, DatasetError
from sa3lora.latents.schema import ClipRow
from sa3lora.latents.shards import FrameArray, write_shard
from sa3lora.models.blocks import encode_audio
from sa3lora.models.same import SameAutoencoder

_SHARD_BYTES = 64 << 20
_SHARD_SECONDS = 120.0  # at most this much work is lost when the machine goes down
_SILENCE_S = 12.0


class ShardBuffer:
    """Clips waiting to become a shard."""

    def __init__(self, root: Path, *, rank: int) -> None:
        """Start empty.

        Args:
            root: The dataset folder.
            rank: Number of this process.
        """
        self._root = root
        self._rank = rank
        self._rows: list[ClipRow] = []
        self._latents: list[FrameArray] = []
        self._size = 0
        self._since = time.monotonic()

    def add(self, row: ClipRow, latent: FrameArray) -> None:
        """Take a clip, and write a shard when there is enough for one.

        Args:
            row: The clip.
            latent: (T, C).
        """
        self._rows.append(row)
        self._latents.append(latent)
        self._size += latent.nbytes
        if self._size >= _SHARD_BYTES or time.monotonic() - self._since >= _SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as a shard, if anything is."""
        rows, latents = self._rows, self._latents
        self._rows, self._latents, self._size = [], [], 0
        self._since = time.monotonic()
        if rows:
            write_shard(self._root, rank=self._rank, rows=rows, latents=latents)


def encode_clips(
    clips: Sequence[PlannedClip],
    *,
    root: Path,
    rank: int,
    autoencoder: SameAutoencoder,
    device: str,
    on_clip: Callable[[PlannedClip], None],
) -> None:
    """Encode clips and write them as shards.

    An interruption keeps every clip that was encoded before it.

    Args:
        clips: Clips of one file next to each other.
        root: The dataset folder.
        rank: Number of this process.
        autoencoder: On `device`.
        device: Where to compute.
        on_clip: Called after each clip.

    Raises:
        DatasetError: If a file changed since it was checked, or a latent is not finite.
    """
    buffer = ShardBuffer(root, rank=rank)
    try:
        for clip, audio in _audio_of(clips, autoencoder=autoencoder):
            latent = encode_one(
                audio, clip_id=clip.row.clip_id, autoencoder=autoencoder, device=device
            )
            if not bool(torch.isfinite(latent).all()):
                raise DatasetError(
                    f"{clip.row.source}: its latent does not fit float16. "
                    "Encode with --dtype float32; if you did, the weights are damaged."
                )
            assert latent.shape[1] == clip.row.num_frames
            buffer.add(clip.row, latent.T.contiguous().numpy())
            on_clip(clip)
    finally:
        buffer.flush()


def _audio_of(
    clips: Sequence[PlannedClip], *, autoencoder: SameAutoencoder
) -> Iterator[tuple[PlannedClip, Tensor]]:
    sample_rate, channels = autoencoder.sample_rate, autoencoder.config.audio_channels
    for path, group in groupby(clips, key=lambda clip: clip.path):
        try:
            # Resampled as a whole: a segment cut before that would begin and end with an artefact.
            audio, _ = read_audio(path, sample_rate=sample_rate, num_channels=channels)
        except AudioError as error:
            raise DatasetError(f"{path.name} changed while it was prepared: {error.reason}") from (
                error
            )
        for clip in group:
            stop = clip.segment.start + clip.segment.num_samples
            if stop > audio.shape[1]:
                raise DatasetError(f"{clip.row.source} changed while it was prepared. Run again.")
            yield clip, audio[:, clip.segment.start : stop]


@torch.inference_mode()
def encode_one(audio: Tensor, *, clip_id: str, autoencoder: SameAutoencoder, device: str) -> Tensor:
    """Encode one clip alone, at its natural length.

    Args:
        audio: (2, N) at the model's rate.
        clip_id: Seeds the encoder's noise, so that a clip always gets the same latent, beside
            whichever others and in whichever process.
        autoencoder: On `device`.
        device: Where to compute.

    Returns:
        (C, ceil(N / ratio)) float16, on the CPU.
    """
    seed = int(clip_id[:15], 16)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws for any device
    latent = encode_audio(autoencoder, audio[None].to(device), generator=generator)[0]
    num_frames = -(-audio.shape[1] // autoencoder.downsampling_ratio)
    return latent[:, :num_frames].to("cpu", torch.float16)


def encode_silence(autoencoder: SameAutoencoder, *, device: str, max_s: float) -> Tensor:
    """Encode real silence, which pads clips in batches.

    Args:
        autoencoder: On `device`.
        device: Where to compute.
        max_s: Longest clip of the model.

    Returns:
        (C, T) float16, on the CPU.
    """
    num_samples = round(min(_SILENCE_S, max_s) * autoencoder.sample_rate)
    audio = torch.zeros(autoencoder.config.audio_channels, num_samples)
    return encode_one(audio, clip_id="0" * 32, autoencoder=autoencoder, device=device)
