"""How much of a held-out piece its latents keep."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sa3lora.pipeline import SA3Pipeline
from sa3lora.tiny.measure.outcome import Outcome, ceiling, floor
from sa3lora.tiny.pieces import HELD_OUT_SEED, pretraining_piece
from sa3lora.tiny.shape import SAMPLE_RATE
from sa3lora.tiny.spectra import log_mel, magnitudes

WINDOW, BANDS = 1024, 64
FLOOR = 1e-3  # 60 dB below a full-scale sine
ONSET_TOLERANCE_S = 0.05
_NUM_PIECES, _PIECE_S = 128, 10.0
_BATCH = 8


def log_mels(audio: Tensor) -> Tensor:
    """Log-mel spectra of sound (B, K, N), (B, K, bands, frames), natural logarithm."""
    logs = log_mel(magnitudes(audio, WINDOW), BANDS, floor=FLOOR)
    return logs.reshape(*audio.shape[:2], *logs.shape[1:])


def log_mel_distance(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute distance of log-mel spectra of sounds (B, K, N), (B,)."""
    return (log_mels(first) - log_mels(second)).abs().mean(dim=(1, 2, 3))


@torch.no_grad()
def reconstruct(pipeline: SA3Pipeline, audio: Tensor) -> Tensor:
    """Encode and decode sounds (B, 2, N)."""
    made = []
    for start in range(0, len(audio), _BATCH):
        part = audio[start : start + _BATCH]
        latents = torch.stack([pipeline.encode_audio(sound, SAMPLE_RATE) for sound in part])
        made.append(pipeline.decode(latents)[..., : audio.shape[-1]])
    return torch.cat(made)


def find_onsets(audio: Tensor) -> NDArray[np.float64]:
    """Seconds at which something begins in a sound (2, N), as librosa hears it."""
    from librosa.onset import onset_detect

    mono = audio.mean(dim=0).numpy()
    return np.asarray(onset_detect(y=mono, sr=SAMPLE_RATE, hop_length=160, units="time"))


def match_onsets(found: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """F-measure of onsets that lie within the tolerance, each matched at most once.

    Going through both sorted lists and pairing the first two that fit is the largest matching.
    Two empty lists agree.
    """
    i = j = hits = 0
    while i < len(found) and j < len(true):
        if abs(found[i] - true[j]) <= ONSET_TOLERANCE_S:
            hits, i, j = hits + 1, i + 1, j + 1
        elif found[i] < true[j]:
            i += 1
        else:
            j += 1
    total = len(found) + len(true)
    return 2 * hits / total if total else 1.0


def held_out_pieces(count: int, *, seconds: float = _PIECE_S) -> Tensor:
    """Render the first held-out pieces, (count, 2, N)."""
    pieces = [pretraining_piece(HELD_OUT_SEED + i, duration_s=seconds) for i in range(count)]
    return torch.stack([torch.from_numpy(piece.audio) for piece in pieces])


def measure_reconstruction(pipeline: SA3Pipeline, *, count: int = _NUM_PIECES) -> list[Outcome]:
    """Compare pieces with their reconstructions, by log-mel spectra and by onsets."""
    pieces = held_out_pieces(count)
    made = reconstruct(pipeline, pieces)
    own = log_mel_distance(made, pieces).mean()
    # Seeds are independent, so that each piece's neighbour is a random other one.
    other = log_mel_distance(pieces, pieces.roll(1, dims=0)).mean()
    pairs = zip(made, pieces, strict=True)
    f_measures = [match_onsets(find_onsets(a), find_onsets(b)) for a, b in pairs]
    setting = f"{count} held-out pieces of {_PIECE_S:g} s"
    mel = f"{setting}, {WINDOW}-sample windows, {BANDS} bands, floor -60 dB"
    return [
        ceiling("log-mel L1, share of random pairs'", float(own / other), 0.30, conditions=mel),
        floor(
            "onset F-measure within 50 ms", float(np.mean(f_measures)), 0.70,
            conditions=f"{setting}, onsets of the reconstruction against the piece's",
        ),
    ]  # fmt: skip
