"""Rendered pieces on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sa3lora.tiny import pool
from sa3lora.tiny.pieces import pretraining_piece


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PIECES_PER_SHARD", 2)


def test_a_pool_holds_the_pieces_of_its_seeds(tmp_path: Path, small_shards: None) -> None:
    pool.render_pool(tmp_path, shards=2, workers=1)
    pieces = pool.read_pool(tmp_path)
    assert [p.seed for p in pieces] == [0, 1, 2, 3]
    expected = pretraining_piece(3)
    assert pieces[3].seconds == pytest.approx(expected.duration_s, abs=1e-3)
    np.testing.assert_allclose(np.array(pieces[3].audio) / 32767, expected.audio, atol=2e-5)


def test_a_whole_shard_is_not_rendered_again(tmp_path: Path, small_shards: None) -> None:
    pool.render_pool(tmp_path, shards=1, workers=1)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    pool.render_pool(tmp_path, shards=1, workers=1)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
