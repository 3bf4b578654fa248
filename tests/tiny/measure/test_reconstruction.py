"""Distances of spectra and onsets."""

from __future__ import annotations

import math

import numpy as np
import torch

from sa3lora.tiny.measure.reconstruction import (
    FLOOR,
    find_onsets,
    log_mel_distance,
    match_onsets,
)
from sa3lora.tiny.pieces import make_piece


def _noise(seed: int, level: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return level * torch.randn(1, 2, 16000, generator=generator)


def test_twice_the_level_is_6_db_away_where_nothing_is_near_the_floor():
    sound = _noise(0)
    assert log_mel_distance(sound, sound) == 0
    distance = float(log_mel_distance(2 * sound, sound))
    assert abs(distance - math.log(2)) < 0.06


def test_what_lies_below_the_floor_hardly_counts():
    faint = _noise(1, level=FLOOR / 20)
    assert float(log_mel_distance(faint, torch.zeros_like(faint))) < 0.1


def test_onsets_match_within_50_ms_and_only_once():
    true = np.array([1.0, 2.0, 3.0])
    assert match_onsets(true + 0.04, true) == 1.0
    assert match_onsets(true + 0.06, true) == 0.0
    assert match_onsets(np.array([0.98, 1.02]), np.array([1.0])) == 2 / 3
    assert match_onsets(np.array([]), np.array([])) == 1.0
    assert match_onsets(np.array([]), true) == 0.0


def test_the_onsets_of_a_marimba_are_found():
    piece = make_piece(10_000_003, duration_s=6.0, timbre="marimba")
    true = np.unique([event.onset_s for event in piece.events])
    assert match_onsets(find_onsets(torch.from_numpy(piece.audio)), true) > 0.8
