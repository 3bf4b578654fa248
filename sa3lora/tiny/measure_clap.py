"""Measures of the small CLAP on held-out pieces: retrieval, timbre, left-out styles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sa3lora.models.clap import TinyClap
from sa3lora.tiny.captions import full_caption
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


def measure_clap(clap: TinyClap, *, first_seed: int = HELD_OUT_SEED) -> dict[str, float]:
    """Measure on pieces from `first_seed` on.

    Returns:
        Recall@1 among 64 pieces of 10 s (captions as written and complete ones), the same on the
        report's window, zero-shot accuracy over the twelve prompt timbres, and the accuracy of a
        linear probe on the left-out styles.
    """
    pieces = [pretraining_piece(first_seed + i, duration_s=_PIECE_S) for i in range(_NUM_PIECES)]
    written = clap.embed_text([piece.caption for piece in pieces])
    complete = clap.embed_text([full_caption(piece.description) for piece in pieces])
    scores = {}
    for label, seconds in (("10s", _PIECE_S), ("window", clap.window_s)):
        audio = clap.embed_audio([mono_window(piece, window_s=seconds) for piece in pieces])
        scores[f"recall_at_1_{label}"] = recall_at_1(audio, written)
        scores[f"recall_at_1_{label}_complete_captions"] = recall_at_1(audio, complete)
    return scores | {
        "timbre_accuracy": _timbre_accuracy(clap, first_seed + 10_000),
        "style_probe": _style_probe(clap, first_seed + 20_000),
    }


def _timbre_accuracy(clap: TinyClap, first_seed: int) -> float:
    prompts = clap.embed_text([f"solo {timbre}" for timbre in PROMPT_TIMBRES])
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
