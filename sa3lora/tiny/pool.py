"""Rendered pretraining pieces on disk, in shards, so that training does not wait for synthesis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sa3lora.runs import write_bytes_atomic
from sa3lora.tiny.pieces import pretraining_piece

PIECES_PER_SHARD = 250
SAMPLE_RATE = 16000


@dataclass(frozen=True)
class PooledPiece:
    """One rendered piece: int16 sound (2, N), its seed and its length."""

    audio: np.ndarray
    seed: int

    @property
    def seconds(self) -> float:
        """Duration."""
        return float(self.audio.shape[1] / SAMPLE_RATE)


def render_pool(folder: Path, *, shards: int, first: int = 0, workers: int = 2) -> None:
    """Render shards that are not there yet; each is written whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as executor:
        list(executor.map(partial(_render_shard, folder), range(first, first + shards)))


def _render_shard(folder: Path, index: int) -> None:
    audio_path, list_path = _paths(folder, index)
    if list_path.is_file() and audio_path.is_file():
        return
    seeds = range(index * PIECES_PER_SHARD, (index + 1) * PIECES_PER_SHARD)
    pieces = [pretraining_piece(seed) for seed in seeds]
    sounds = [np.round(p.audio * 32767).astype(np.int16) for p in pieces]
    partial_path = audio_path.with_suffix(".partial")
    with partial_path.open("wb") as file:
        np.save(file, np.concatenate(sounds, axis=1).T.copy())
    partial_path.replace(audio_path)
    listing = {"seeds": list(seeds), "samples": [s.shape[1] for s in sounds]}
    write_bytes_atomic(list_path, json.dumps(listing).encode())


def _paths(folder: Path, index: int) -> tuple[Path, Path]:
    return folder / f"pieces-{index:04d}.npy", folder / f"pieces-{index:04d}.json"


def read_pool(folder: Path) -> list[PooledPiece]:
    """Open every whole shard; the sound stays on disk until it is used."""
    return list(_read_shards(folder))


def _read_shards(folder: Path) -> Iterator[PooledPiece]:
    for list_path in sorted(folder.glob("pieces-*.json")):
        listing = json.loads(list_path.read_text())
        sound = np.load(list_path.with_suffix(".npy"), mmap_mode="r").T
        ends = np.cumsum(listing["samples"])
        for seed, end, length in zip(listing["seeds"], ends, listing["samples"], strict=True):
            yield PooledPiece(sound[:, end - length : end], seed)
