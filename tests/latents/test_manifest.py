from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sa3lora.errors import DatasetError
from sa3lora.latents.manifest import (
    collect_rows,
    manifest_is_current,
    read_meta,
    read_silence,
    remove_manifest,
    summarise,
    write_manifest,
    write_silence,
)
from sa3lora.latents.schema import ClipRow
from sa3lora.latents.shards import write_shard

ROW = ClipRow("a", 2, "c", "sidecar", {}, 0.5, 0.0, "a.wav", "0", 1.0, "train")
ROWS = [replace(ROW, clip_id=c, source=f"{c}.wav") for c in "abc"]
LATENTS = [np.full((2, 4), n, dtype=np.float16) for n in range(3)]


def test_the_fingerprint_does_not_depend_on_shards_or_order(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    write_shard(one, rank=0, rows=ROWS, latents=LATENTS)
    write_shard(other, rank=1, rows=ROWS[2:], latents=LATENTS[2:])
    write_shard(other, rank=0, rows=ROWS[1::-1], latents=LATENTS[1::-1])
    assert collect_rows(one, channels=4) == collect_rows(other, channels=4)


@pytest.mark.parametrize("what", ["caption", "latent"])
def test_the_fingerprint_tells_a_change(tmp_path, what):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    write_shard(one, rank=0, rows=[ROW], latents=LATENTS[:1])
    row = replace(ROW, caption="d") if what == "caption" else ROW
    write_shard(
        other, rank=0, rows=[row], latents=LATENTS[1:2] if what == "latent" else LATENTS[:1]
    )
    assert collect_rows(one, channels=4)[1] != collect_rows(other, channels=4)[1]


def test_silence_survives(tmp_path):
    latent = torch.randn(4, 6).half()
    write_silence(tmp_path, latent)
    assert torch.equal(read_silence(tmp_path, channels=4), latent.float())


def test_silence_of_other_channels_is_refused(tmp_path):
    write_silence(tmp_path, torch.zeros(4, 6))
    with pytest.raises(DatasetError, match="does not hold a latent of 8 channels"):
        read_silence(tmp_path, channels=8)


def test_damaged_silence_is_named(tmp_path):
    (tmp_path / "silence.safetensors").write_bytes(b"no")
    with pytest.raises(DatasetError, match=r"silence\.safetensors is damaged"):
        read_silence(tmp_path, channels=4)


def test_a_manifest_is_current_until_something_of_it_changes(make_latents, tmp_path):
    root = make_latents(tmp_path / "set")
    meta = read_meta(root)
    assert manifest_is_current(root, meta)
    assert not manifest_is_current(root, replace(meta, model="other"))
    (root / "state.json").write_text("{}")
    assert not manifest_is_current(root, meta)
    write_manifest(root, meta)
    assert manifest_is_current(root, meta)
    remove_manifest(root)
    assert not manifest_is_current(root, meta)


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match=r"dataset.json is damaged"):
        read_meta(tmp_path)


def test_a_summary_counts_clips_seconds_and_captions():
    rows = [*ROWS, replace(ROW, clip_id="d", split="test", caption_source="template")]
    found = summarise(rows)
    assert found["counts"] == {"clips": 4, "sources": 3, "train": 3, "validation": 0, "test": 1}
    assert found["seconds"] == {"total": 2.0, "train": 1.5, "validation": 0, "test": 0.5}
    assert found["captions"] == {"sidecar": 3, "template": 1}
