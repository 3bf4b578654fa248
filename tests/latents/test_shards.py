from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from sa3lora.errors import DatasetError
from sa3lora.latents.schema import ClipRow
from sa3lora.latents.shards import (
    LatentColumn,
    list_shards,
    open_shard,
    read_rows,
    remove_leftovers,
    write_shard,
)

ROW = ClipRow("a", 3, "c", "sidecar", {}, 0.1, 0.0, "a.wav", "0", 0.1, "train")


def latents(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((3, 4)).astype(np.float16) for _ in range(count)]


def test_a_shard_gives_back_rows_and_latents_exactly(tmp_path):
    rows = [replace(ROW, clip_id=str(n), tags={"n": str(n)}) for n in range(5)]
    written = latents(5)
    table = open_shard(write_shard(tmp_path, rank=0, rows=rows, latents=written))
    assert read_rows(table) == rows
    column = LatentColumn(table, channels=4)
    for number, latent in enumerate(written):
        assert np.array_equal(column.view(number), latent)


def test_shards_are_numbered_by_rank(tmp_path):
    for rank in (0, 10, 0, 2):
        write_shard(tmp_path, rank=rank, rows=[ROW], latents=latents(1))
    names = [path.name for path in list_shards(tmp_path)]
    assert names == ["shard-0-0.arrow", "shard-0-1.arrow", "shard-2-0.arrow", "shard-10-0.arrow"]


def test_a_full_disk_leaves_nothing_and_names_the_shard(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DatasetError, match=r"shard-0-0.arrow: No space left on device"):
        write_shard(tmp_path, rank=0, rows=[ROW], latents=latents(1))
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_go_and_shards_stay(tmp_path):
    shard = write_shard(tmp_path, rank=0, rows=[ROW], latents=latents(1))
    (tmp_path / ".shard-0-0011aabb.tmp").write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [shard]


def test_a_latent_of_a_wrong_size_is_named(tmp_path):
    shard = write_shard(tmp_path, rank=0, rows=[replace(ROW, num_frames=4)], latents=latents(1))
    with pytest.raises(DatasetError, match="clip a holds 12 numbers, 4 frames of 4 channels"):
        LatentColumn(open_shard(shard), channels=4)
