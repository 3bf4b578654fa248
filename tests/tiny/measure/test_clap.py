"""Measures of the small CLAP."""

from __future__ import annotations

import torch

from sa3lora.tiny.measure.clap import linear_probe, mono_window, recall_at_1
from sa3lora.tiny.pieces import make_piece


def test_recall_counts_captions_that_find_their_own_audio():
    rows = torch.eye(4)
    assert recall_at_1(rows, rows) == 1.0
    assert recall_at_1(rows, rows[[0, 1, 3, 2]]) == 0.5


def test_a_probe_tells_separate_clouds_apart_and_not_equal_ones():
    generator = torch.Generator().manual_seed(0)
    labels = [i % 3 for i in range(120)]
    labels[::2], labels[1::2] = labels[:60], labels[60:]
    noise = torch.randn(120, 8, generator=generator)
    assert linear_probe(noise + 8 * torch.eye(8)[labels], labels) == 1.0
    assert linear_probe(noise, labels) < 0.6


def test_a_window_is_the_mono_beginning():
    piece = make_piece(0, duration_s=2.0, timbre="flute")
    window = mono_window(piece, window_s=0.5)
    assert window.shape == (8000,)
    torch.testing.assert_close(window, torch.from_numpy(piece.audio[:, :8000].mean(axis=0)))
