"""Measures of the small CLAP on held-out pieces: retrieval, timbre, left-out styles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sa3lora.models.clap import TinyClap
from sa3lora.tiny.measure.outcome import Outcome, fact, floor
from sa3lora.tiny.pieces import HELD_OUT_SEED, Piece, make_piece, pretraining_piece
from sa3lora.tiny.styles import STYLES
from sa3lora.tiny.timbres import PROMPT_TIMBRES

_NUM_PIECES = 64
_PER_CLASS = 12
_PIECE_S = 10.0


def mono_window(piece: Piece, *, window_s: float) -> Tensor:
    """Cut the first window of a piece, mixed down."""
    return torch.from_numpy(piece.audio.mean(axis=0))[: round(window_s * piece.sample_rate)]


def recall_at_1(audio: Tensor, text: Tensor) -> float:
    """Tell how often the nearest audio of a caption is its own."""
    return float(((text @ audio.T).argmax(dim=1) == torch.arange(len(text))).float().mean())


def linear_probe(vectors: Tensor, labels: Sequence[int]) -> float:
    """Fit ridge regression to half of the vectors, return the accuracy on the other half."""
    x = vectors.double().numpy()
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    y = np.eye(max(labels) + 1)[list(labels)]
    train, test = slice(0, None, 2), slice(1, None, 2)
    gram = x[train].T @ x[train] + 1e-2 * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x[train].T @ y[train])
    return float(((x[test] @ weights).argmax(axis=1) == np.array(labels)[test]).mean())


def measure_clap(clap: TinyClap, *, first_seed: int = HELD_OUT_SEED) -> list[Outcome]:
    """Measure retrieval, timbres and left-out styles on pieces from `first_seed` on."""
    pieces = [pretraining_piece(first_seed + i, duration_s=_PIECE_S) for i in range(_NUM_PIECES)]
    written = clap.embed_text([piece.caption for piece in pieces])
    setting = f"{_NUM_PIECES} held-out pieces with captions as written"
    recalls = []
    for seconds in (_PIECE_S, clap.window_s):
        audio = clap.embed_audio([mono_window(piece, window_s=seconds) for piece in pieces])
        recalls.append(recall_at_1(audio, written))
    timbres = timbre_accuracy(clap, first_seed + 10_000)
    return [
        floor("caption-to-audio recall@1", recalls[0], 0.40, conditions=f"{setting}, 10 s"),
        fact("the same on the report's window", recalls[1], conditions=setting),
        fact(
            "top-1 timbre of real solos", timbres,
            conditions=f"12 timbres x {_PER_CLASS} held-out pieces",
        ),
        floor(
            "linear probe of the left-out styles", _style_probe(clap, first_seed + 20_000), 0.9,
            conditions=f"{len(STYLES)} styles x {_PER_CLASS} pieces, half of them to fit",
        ),
    ]  # fmt: skip


def solo_prompts() -> list[str]:
    """Give a prompt for each of the twelve timbres."""
    return [f"solo {timbre}" for timbre in PROMPT_TIMBRES]


def timbre_accuracy(clap: TinyClap, first_seed: int) -> float:
    """Tell how often the nearest of twelve prompts names the timbre of a real solo."""
    prompts = clap.embed_text(solo_prompts())
    right = 0
    for index, timbre in enumerate(PROMPT_TIMBRES):
        pieces = [
            make_piece(first_seed + _PER_CLASS * index + i, duration_s=_PIECE_S, timbre=timbre)
            for i in range(_PER_CLASS)
        ]
        audio = clap.embed_audio([mono_window(p, window_s=clap.window_s) for p in pieces])
        right += int(((audio @ prompts.T).argmax(dim=1) == index).sum())
    return right / (_PER_CLASS * len(PROMPT_TIMBRES))


def _style_probe(clap: TinyClap, first_seed: int) -> float:
    windows, labels = [], []
    for index, style in enumerate(STYLES):
        for i in range(_PER_CLASS):
            seed = first_seed + _PER_CLASS * index + i
            piece = make_piece(seed, duration_s=_PIECE_S, style=style)
            windows.append(mono_window(piece, window_s=clap.window_s))
            labels.append(index)
    return linear_probe(clap.embed_audio(windows), labels)
