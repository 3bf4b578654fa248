"""Pretraining of the small CLAP."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from sa3lora.models.clap import TinyClap
from sa3lora.tiny import pretrain_clap
from sa3lora.tiny.pool import render_pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sa3lora.tiny.pool.PIECES_PER_SHARD", 6)
        patch.setattr("sa3lora.tiny.pool.ProcessPoolExecutor", _InThisProcess)
        render_pool(folder, shards=1)
    return folder


class _InThisProcess:
    def __init__(self, workers):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    tokenizer = pretrain_clap.train_tokenizer(num_captions=50)
    monkeypatch.setattr(pretrain_clap, "train_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(pretrain_clap, "_SAVE_EVERY", 1)


def test_an_interrupted_run_ends_in_the_same_model(pool, tmp_path, monkeypatch):
    whole = pretrain_clap.train_clap(pool, tmp_path / "whole", max_steps=3, batch=4)
    update = pretrain_clap.ResumableLoop.update

    def stop_early(loop):
        if loop.step == 2:
            raise KeyboardInterrupt
        return update(loop)

    monkeypatch.setattr(pretrain_clap.ResumableLoop, "update", stop_early)
    with pytest.raises(KeyboardInterrupt):
        pretrain_clap.train_clap(pool, tmp_path / "parts", max_steps=3, batch=4)
    monkeypatch.setattr(pretrain_clap.ResumableLoop, "update", update)
    resumed = pretrain_clap.train_clap(pool, tmp_path / "parts", max_steps=3, batch=4)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_an_exported_model_is_half_precision_and_loads(pool, tmp_path):
    model = pretrain_clap.train_clap(pool, tmp_path / "work", max_steps=1, batch=4)
    pretrain_clap.export_clap(model, tmp_path / "clap")
    tensors = load_file(tmp_path / "clap" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert json.loads((tmp_path / "clap" / "config.json").read_text())["window_s"] == 5.0
    loaded = TinyClap.from_pretrained(tmp_path / "clap")
    prompts = ["solo flute, 96 BPM", "drums"]
    torch.testing.assert_close(
        loaded.embed_text(prompts), model.embed_text(prompts), atol=5e-3, rtol=0
    )
