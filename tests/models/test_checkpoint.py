from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sa3lora.errors import CheckpointError
from sa3lora.models import Denoiser, ModelSource
from sa3lora.models.checkpoint import (
    autoencoder_key,
    check_inventory,
    compare_inventories,
    denoiser_key,
    expected_inventory,
    fill,
    full_key,
    hash_tensors,
    read_inventory,
    read_tensors,
)


def test_keys_of_the_parts_and_back(source: ModelSource) -> None:
    for key in expected_inventory(source.config):
        ours, theirs = denoiser_key(key), autoencoder_key(key)
        assert (ours is None) != (theirs is None), f"{key} belongs to exactly one part"
        if ours is not None:
            assert full_key(ours) == key


def test_the_prefix_of_an_autoencoder_may_be_absent() -> None:
    assert autoencoder_key("pretransform.model.encoder.layers.2.bias") == "encoder.layers.2.bias"
    assert autoencoder_key("encoder.layers.2.bias") == "encoder.layers.2.bias"
    assert autoencoder_key("model.model.to_cond_embed.0.weight") is None


def test_every_difference_is_listed() -> None:
    expected = {"a": (1, 2), "b": (3,), "c": (4,)}
    found = {"a": (2, 1), "b": (3,), "d": (5,)}
    assert compare_inventories(found, expected) == [
        "missing c [4]", "unexpected d [5]", "a is [2, 1], must be [1, 2]",
    ]  # fmt: skip
    assert compare_inventories(expected, expected) == []


def test_a_file_that_fits_passes(source: ModelSource) -> None:
    check_inventory(source.weights_path, source.config)
    assert read_inventory(source.weights_path) == expected_inventory(source.config)


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        read_inventory(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is damaged .*Download it again"):
        read_inventory(path)
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_inventory(path)


def test_filling_is_strict(source: ModelSource) -> None:
    with torch.device("meta"):
        empty = Denoiser(source.config)
    with pytest.raises(RuntimeError, match="Missing key"):
        fill(empty, [], device="cpu", dtype=torch.float32)


def test_rotary_speeds_stay_float32(source: ModelSource) -> None:
    half = source.load_denoiser(dtype=torch.float16)
    assert half.dtype == torch.float16
    assert half.model.transformer.rotary_pos_emb.inv_freq.dtype == torch.float32


def test_the_hash_follows_name_shape_and_value() -> None:
    value = torch.arange(6.0)
    base = hash_tensors([("a", value)])
    assert hash_tensors([("b", value)]) != base
    assert hash_tensors([("a", value.reshape(2, 3))]) != base
    assert hash_tensors([("a", value + 1e-6)]) != base
    assert hash_tensors([("a", value.to(torch.float64))]) == base


@pytest.mark.parametrize("padding", ["", "x" * 9, "x" * 25, "x" * 41])
def test_equal_weights_compute_equal_bits_wherever_a_file_holds_them(
    tmp_path: Path, padding: str
) -> None:
    weight = torch.randn(33, 17, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, tmp_path / "w.safetensors", metadata={"padding": padding})
    with torch.device("meta"):
        layer = torch.nn.Linear(17, 33, bias=False)
    tensors = read_tensors(tmp_path / "w.safetensors", {"weight": "weight"})
    fill(layer, tensors, device="cpu", dtype=torch.float32)
    assert torch.equal(layer.weight, weight)
    assert layer.weight.data_ptr() % 64 == 0  # where a mapped file may not put it
