from __future__ import annotations

import json
import pickle

import datasets
import numpy as np
import pytest
import torch

from sa3lora.errors import DatasetError
from sa3lora.latents.format import LatentsDataset


@pytest.fixture
def root(make_latents, tmp_path):
    return make_latents(tmp_path / "set")


def test_the_folder_opens_with_the_plain_library(root):
    plain = datasets.load_from_disk(str(root))
    ours = LatentsDataset.open(root)
    assert plain.num_rows == len(ours)
    assert plain.column_names[:3] == ["clip_id", "latent", "num_frames"]
    by_id = {row["clip_id"]: row for row in plain}
    for clip in (ours[n] for n in range(len(ours))):
        flat = torch.tensor(by_id[clip.clip_id]["latent"])
        assert torch.equal(clip.latent, flat.view(clip.num_frames, 12).T)


def test_latents_are_views_of_the_file_and_tensors_are_copies(root):
    data = LatentsDataset.open(root)
    view = data.latent_view(0)
    assert view.dtype == np.float16
    assert not view.flags.owndata
    assert not view.flags.writeable
    data[0].latent.zero_()
    assert view.any()


def test_splits_divide_the_clips(root):
    whole = LatentsDataset.open(root)
    parts = [LatentsDataset.open(root, split=s) for s in ("train", "validation", "test")]
    assert sum(len(part) for part in parts) == len(whole)
    assert all(row.split == "validation" for row in parts[1].rows)
    assert len(parts[2]) == 0


def test_lengths_are_known_without_latents(root):
    data = LatentsDataset.open(root)
    assert data.num_frames == [data[n].latent.shape[1] for n in range(len(data))]


def test_a_dataset_travels_to_another_process(root):
    data = LatentsDataset.open(root, split="train")
    other = pickle.loads(pickle.dumps(data))  # noqa: S301 - our own bytes
    assert torch.equal(other[-1].latent, data[-1].latent)
    assert other.split == "train"


def test_an_unknown_split_is_refused(root):
    with pytest.raises(DatasetError, match="no split 'dev': the splits are train, validation"):
        LatentsDataset.open(root, split="dev")


def test_a_missing_folder_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(DatasetError, match=r"no folder .*none.*sa3lora prep"):
        LatentsDataset.open(tmp_path / "none")


def test_another_folder_is_no_dataset(tmp_path):
    with pytest.raises(DatasetError, match=r"not a latents dataset \(it has no dataset.json\)"):
        LatentsDataset.open(tmp_path)


def test_an_unfinished_prep_does_not_open(root):
    (root / ".prep").mkdir()
    (root / "dataset.json").unlink()
    with pytest.raises(DatasetError, match="unfinished: run the same sa3lora prep again"):
        LatentsDataset.open(root)


def test_a_missing_shard_is_named(root):
    (root / "shard-0-0.arrow").unlink()
    with pytest.raises(DatasetError, match=r"shard-0-0.arrow is damaged"):
        LatentsDataset.open(root)


def test_a_cut_shard_is_named(root):
    shard = root / "shard-0-0.arrow"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(DatasetError, match=r"shard-0-0.arrow is damaged|holds \d+ clips"):
        LatentsDataset.open(root)


def test_missing_silence_is_named(root):
    (root / "silence.safetensors").unlink()
    with pytest.raises(DatasetError, match=r"lacks silence\.safetensors"):
        LatentsDataset.open(root)


def test_a_newer_format_is_refused(root):
    meta = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**meta, "format_version": 9}))
    with pytest.raises(DatasetError, match="format version 9, this sa3lora reads 1"):
        LatentsDataset.open(root)
