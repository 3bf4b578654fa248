"""Crops for CLAP training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator

from sa3lora.models.clap import AudioTower, ClapConfig
from sa3lora.tiny.clap_crops import analyse_pool, draw_crops, worsen
from sa3lora.tiny.pool import PooledPiece

CONFIG = ClapConfig(audio_dim=16, audio_depth=1)


def _pieces(tmp_path, seconds=(12.0, 3.0)):
    rng = np.random.default_rng(0)
    pool = [
        PooledPiece(rng.integers(-9000, 9000, (2, round(16000 * s)), dtype=np.int16), seed)
        for seed, s in enumerate(seconds)
    ]
    return analyse_pool(pool, tmp_path, tower=AudioTower(CONFIG)), pool


def test_analysis_is_what_the_tower_hears(tmp_path):
    pieces, pool = _pieces(tmp_path, seconds=(2.0,))
    mono = torch.from_numpy(pool[0].audio.astype(np.float32).mean(axis=0) / 32767)
    mel, chroma = AudioTower(CONFIG).analyse(mono[None])
    torch.testing.assert_close(pieces[0].mel.float().square(), mel[0], rtol=5e-3, atol=1e-4)
    torch.testing.assert_close(pieces[0].chroma.float(), chroma[0], rtol=5e-3, atol=1e-2)


def test_a_second_call_takes_the_files_of_the_first(tmp_path):
    first, _ = _pieces(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second, _ = _pieces(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times
    assert torch.equal(first[0].mel, second[0].mel)


def test_crops_share_a_length_of_4_to_10_seconds_and_short_pieces_are_masked(tmp_path):
    pieces, _ = _pieces(tmp_path)
    for seed in range(5):
        crops = draw_crops(pieces, generator=Generator().manual_seed(seed))
        assert 4.0 <= crops.mask.shape[1] / 50 <= 10.0
        assert crops.mask[0].all()
        assert crops.mask[1].sum() == 150
        assert not crops.mel[1, :, 150:].any()
        assert crops.chroma.shape[2] * 5 == crops.mel.shape[2]


def test_worsening_leaves_some_rows_alone_and_keeps_power_positive():
    mel = torch.rand(64, 64, 40)
    worse = worsen(mel, generator=Generator().manual_seed(0))
    same = [bool(torch.equal(a, b)) for a, b in zip(mel, worse, strict=True)]
    assert 3 < sum(same) < 30
    assert float(worse.min()) >= 0
    assert torch.equal(worse, worsen(mel, generator=Generator().manual_seed(0)))
