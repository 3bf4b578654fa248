"""Whole pieces."""

from __future__ import annotations

import time

import numpy as np
import pytest

from sa3lora.audio import read_audio
from sa3lora.errors import UsageError
from sa3lora.tiny.pieces import (
    HELD_OUT_SEED,
    RHYTHM_BPM,
    RHYTHM_SEED,
    RHYTHM_TIMBRES,
    make_piece,
    pretraining_caption,
    pretraining_piece,
    pretraining_plan,
    write_style_folder,
)
from sa3lora.tiny.timbres import TIMBRES


def test_a_seed_decides_every_sample_and_the_caption():
    a, b = pretraining_piece(5), pretraining_piece(5)
    assert np.array_equal(a.audio, b.audio)
    assert a.caption == b.caption
    assert not np.array_equal(
        make_piece(1, duration_s=2.0).audio, make_piece(2, duration_s=2.0).audio
    )


@pytest.mark.parametrize("timbre", list(TIMBRES))
def test_a_solo_of_every_timbre_is_sound_from_start_to_release(timbre):
    piece = make_piece(3, duration_s=4.0, timbre=timbre)
    assert piece.audio.shape == (2, 64000)
    assert piece.audio.dtype == np.float32
    assert piece.timbres == (timbre,)
    assert timbre in piece.caption
    peak_db = 20 * np.log10(np.abs(piece.audio).max())
    assert -3.01 <= peak_db <= -0.99
    assert np.abs(piece.audio[:, :8000]).max() > 0.03, "late start"
    assert np.abs(piece.audio[:, -40:]).max() < 0.01, "cut off at the end"


def test_lengths_are_exact_at_any_rate():
    assert make_piece(0, duration_s=2.37).audio.shape == (2, 37920)
    assert make_piece(0, duration_s=1.5, sample_rate=22050).audio.shape == (2, 33075)


def test_pretraining_pieces_last_2_to_24_seconds_and_half_are_solos():
    plans = [pretraining_plan(seed) for seed in range(100)]
    assert 35 < sum(len(plan.parts) == 1 for plan in plans) < 65
    lengths = [pretraining_piece(seed).duration_s for seed in range(5)]
    assert 2.0 <= min(lengths) < max(lengths) <= 24.0


def test_captions_are_known_without_rendering():
    for seed in range(5):
        assert pretraining_caption(seed) == pretraining_piece(seed, duration_s=1.0).caption


def test_seeds_of_rhythm_are_solos_of_instruments_that_mark_the_beat():
    plans = [pretraining_plan(RHYTHM_SEED + i) for i in range(12)]
    assert {tuple(part.timbre for part in plan.parts) for plan in plans} == {
        (name,) for name in RHYTHM_TIMBRES
    }
    piece = pretraining_piece(RHYTHM_SEED + 3, duration_s=2.0)
    assert piece.timbres == (plans[3].parts[0].timbre,)
    assert piece.tempo_bpm == plans[3].tempo_bpm
    assert {plan.tempo_bpm for plan in (pretraining_plan(RHYTHM_SEED + i) for i in range(36))} == {
        *RHYTHM_BPM
    }


def test_held_out_pieces_are_drawn_as_those_of_pretraining_are():
    plans = [pretraining_plan(HELD_OUT_SEED + i) for i in range(60)]
    assert 15 < sum(len(plan.parts) == 1 for plan in plans) < 45
    assert len({plan.tempo_bpm for plan in plans}) > 12


def test_tags_hold_the_facts_of_the_caption():
    piece = make_piece(11, timbre="organ", duration_s=2.0)
    assert piece.tags["instruments"] == ["organ"]
    assert piece.tags["bpm"] == piece.tempo_bpm
    assert "genre" not in piece.tags


def test_stereo_is_neither_mono_nor_one_sided():
    sides = [make_piece(seed, duration_s=3.0).audio.std(axis=1) for seed in range(5)]
    ratios = [left / right for left, right in sides]
    assert all(0.3 < ratio < 3.3 for ratio in ratios)
    assert any(abs(ratio - 1) > 0.02 for ratio in ratios)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"duration_s": 0.2}, "duration_s must be 1 to 24, got 0.2"),
        ({"style": "polka"}, "unknown style 'polka'; there are: glass gamelan"),
        ({"timbre": "kazoo"}, "unknown timbre 'kazoo'; there are: guitar"),
        ({"style": "lofi tape", "single": True}, "a style brings its own instruments"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        make_piece(0, **arguments)


def test_a_style_folder_has_tracks_with_captions_beside_them(tmp_path):
    paths = write_style_folder("lofi tape", tmp_path / "tracks", n=2, duration_s=2.0)
    assert [path.name for path in paths] == ["lofi_tape_000.wav", "lofi_tape_001.wav"]
    audio, rate = read_audio(paths[1])
    assert (tuple(audio.shape), rate) == ((2, 32000), 16000)
    expected = make_piece(HELD_OUT_SEED + 1, duration_s=2.0, style="lofi tape")
    assert paths[1].with_suffix(".txt").read_text() == expected.caption + "\n"
    np.testing.assert_allclose(audio.numpy(), expected.audio, atol=2e-4)


def test_rendering_is_many_times_faster_than_listening():
    started = time.process_time()
    seconds = sum(pretraining_piece(seed, duration_s=5.0).duration_s for seed in range(6))
    # 130 on one core of 2.5 GHz; the bound leaves room for slower machines.
    assert seconds / (time.process_time() - started) > 20
