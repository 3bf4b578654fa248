"""What is read out of generated clips."""

from __future__ import annotations

import numpy as np
import torch

from sa3lora.tiny.measure.generation import level_after_end_db, shuffle_p_value, tempo_is_right
from sa3lora.tiny.pieces import make_piece


def test_a_real_piece_has_its_tempo_and_not_another():
    piece = make_piece(10_000_005, duration_s=10.0, timbre="drums")
    audio = torch.from_numpy(piece.audio)
    assert tempo_is_right(audio, piece.tempo_bpm)
    assert not tempo_is_right(audio, piece.tempo_bpm * 1.25)


def test_right_prompts_beat_shuffled_ones_and_random_scores_do_not():
    noise = np.random.default_rng(0).standard_normal((24, 24))
    assert shuffle_p_value(noise + 2 * np.eye(24)) < 0.001
    assert shuffle_p_value(noise - np.diag(np.diag(noise))) > 0.01


def test_silence_after_the_end_is_told_from_sound_that_goes_on():
    longer = torch.full((2, 2, 32000), 0.1)
    longer[0, :, 16000:] = 0
    levels = level_after_end_db(longer[..., :16000], longer)
    assert levels[0] < -60
    assert abs(levels[1]) < 0.1
