"""Analysed pieces for CLAP training: computed once, cropped and worsened at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from sa3lora.models.clap import AudioTower
from sa3lora.tiny.pool import PooledPiece

_PER_FILE = 250
_MIN_CROP_S, _MAX_CROP_S = 4.0, 10.0


@dataclass(frozen=True)
class AnalysedPiece:
    """Mel power (M, T) and pitch-class strength (12, Tc) of a piece, float16."""

    seed: int
    mel: Tensor
    chroma: Tensor
    frames_per_chroma: int
    frame_rate: float


@dataclass(frozen=True)
class Crops:
    """A batch of crops: (B, M, T), (B, 12, Tc), and True on real frames, (B, T)."""

    mel: Tensor
    chroma: Tensor
    mask: Tensor


def analyse_pool(
    pieces: Sequence[PooledPiece], folder: Path, *, tower: AudioTower
) -> list[AnalysedPiece]:
    """Analyse every piece as the audio tower does; files of an earlier call are taken as they are.

    The pool must only have grown since.
    """
    folder.mkdir(parents=True, exist_ok=True)
    analysed = []
    for start in range(0, len(pieces), _PER_FILE):
        part = pieces[start : start + _PER_FILE]
        path = folder / f"seeds-{part[0].seed:08d}-{part[-1].seed:08d}.pt"
        if not path.is_file():
            made = [_analyse(piece, tower) for piece in part]
            partial = path.with_suffix(".partial")
            torch.save(made, partial)
            partial.replace(path)
        settings = tower.settings
        for piece, (mel, chroma) in zip(part, torch.load(path, weights_only=True), strict=True):
            ratio = settings.chroma_hop // settings.hop
            rate = settings.sample_rate / settings.hop
            analysed.append(AnalysedPiece(piece.seed, mel, chroma, ratio, rate))
    return analysed


@torch.no_grad()
def _analyse(piece: PooledPiece, tower: AudioTower) -> tuple[Tensor, Tensor]:
    mono = np.asarray(piece.audio, dtype=np.float32).mean(axis=0) / 32767
    mel, chroma = tower.analyse(torch.from_numpy(mono)[None])
    # Band power reaches 1e5, beyond float16: keep amplitudes.
    return mel[0].sqrt().half(), chroma[0].half()


def draw_crops(pieces: Sequence[AnalysedPiece], *, generator: Generator) -> Crops:
    """Cut one window a piece, all of one random length; shorter pieces stay whole, padded."""
    ratio, rate = pieces[0].frames_per_chroma, pieces[0].frame_rate
    seconds = (
        _MIN_CROP_S + (_MAX_CROP_S - _MIN_CROP_S) * float(torch.rand((), generator=generator)) ** 3
    )
    num_chroma = round(seconds * rate / ratio)
    num_frames = num_chroma * ratio
    mel = torch.zeros(len(pieces), pieces[0].mel.shape[0], num_frames)
    chroma = torch.zeros(len(pieces), 12, num_chroma)
    mask = torch.zeros(len(pieces), num_frames, dtype=torch.bool)
    for row, piece in enumerate(pieces):
        room = max(0, piece.mel.shape[1] // ratio - num_chroma)
        start = int(torch.randint(room + 1, (1,), generator=generator))
        cut = piece.mel[:, start * ratio : start * ratio + num_frames].float().square()
        mel[row, :, : cut.shape[1]] = cut
        mask[row, : cut.shape[1]] = True
        pitches = piece.chroma[:, start : start + num_chroma].float()
        chroma[row, :, : pitches.shape[1]] = pitches
    return Crops(mel, chroma, mask)


def worsen(mel: Tensor, *, generator: Generator) -> Tensor:
    """Change level and colour, and blur as a lossy codec would; a fifth of the rows stay clean.

    Args:
        mel: Mel power, (B, M, T).
        generator: Source of every draw.
    """
    rows, bands, frames = mel.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def chance(probability: float) -> Tensor:
        return (torch.rand(rows, 1, 1, generator=generator) < probability).float()

    touched = chance(0.8)
    gain = 0.5 * normal(rows, 1, 1)
    tilt = 0.6 * normal(rows, 1, 1) * torch.linspace(-1, 1, bands)[None, :, None]
    bumps = torch.nn.functional.interpolate(normal(rows, 1, 6), bands, mode="linear")
    grain = 0.5 * normal(rows, bands, frames) * torch.rand(rows, 1, 1, generator=generator)
    patches = torch.nn.functional.interpolate(
        normal(rows, 1, bands // 4, max(1, frames // 8)), (bands, frames), mode="bilinear"
    )[:, 0]
    curve = gain + tilt + 0.4 * bumps.transpose(1, 2) + (grain + 0.5 * patches) * chance(0.7)
    edge = bands * (0.55 + 0.45 * torch.rand(rows, 1, 1, generator=generator))
    dull = (torch.arange(bands)[None, :, None] - edge).clamp_min(0) * chance(0.3)
    floor = 10 ** (-3.5 + 2.0 * torch.rand(rows, 1, 1, generator=generator)) * chance(0.4)
    changed = mel * torch.exp(curve - dull) + floor * normal(rows, bands, frames).square()
    return torch.where(touched.bool(), changed, mel)
