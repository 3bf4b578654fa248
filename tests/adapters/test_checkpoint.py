import errno
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sa3lora.adapters import checkpoint
from sa3lora.adapters.checkpoint import checkpoint_key, merge_into_checkpoint
from sa3lora.adapters.container import read_header
from sa3lora.adapters.files import read_adapter
from sa3lora.adapters.fold import AdapterStack
from sa3lora.errors import AdapterError, AdapterMismatchError, ModelError
from sa3lora.models.source import resolve_model


@pytest.fixture
def base(small_model, tmp_path):
    """The small model with float32 weights, as released files have them."""
    folder = tmp_path / "base"
    shutil.copytree(small_model, folder, ignore=shutil.ignore_patterns("io.*", "adapter_*"))
    folder.chmod(0o755)
    weights = folder / "model.safetensors"
    tensors = {key: tensor.float() for key, tensor in load_file(weights).items()}
    weights.unlink()
    save_file(tensors, weights, {"format": "pt"})
    return folder


@pytest.fixture
def pairs(small_model):
    names = [("lora", 0.5), ("dora-rows", -0.4), ("bora-xs", 0.3)]
    return [
        (read_adapter(small_model / f"adapter_{name}.safetensors"), strength)
        for name, strength in names
    ]


def stacked_state(folder, pairs):
    denoiser = resolve_model(str(folder)).load_denoiser()
    stack = AdapterStack(denoiser)
    for number, (adapter, strength) in enumerate(pairs):
        stack.add(adapter, str(number), strength=strength)
    return denoiser.state_dict()


def test_the_merged_checkpoint_loads_and_equals_the_stack(base, pairs, tmp_path):
    out = tmp_path / "merged"
    report = merge_into_checkpoint(pairs, base, out=out, card="# merged")
    merged = resolve_model(str(out)).load_denoiser().state_dict()
    stacked = stacked_state(base, pairs)
    assert all(torch.equal(merged[name], stacked[name]) for name in stacked)
    assert (report.num_changed, report.rounding) == (31, 0.0)
    assert (out / "README.md").read_text() == "# merged"


def test_everything_but_adapted_weights_is_the_base(base, pairs, tmp_path):
    out = tmp_path / "merged"
    merge_into_checkpoint(pairs, base, out=out, card="")
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {checkpoint_key(site) for adapter, _ in pairs for site in adapter.tensors}
    assert before.keys() == after.keys()
    assert {key for key in before if not torch.equal(before[key], after[key])} == changed
    assert (out / "model_config.json").read_bytes() == (base / "model_config.json").read_bytes()
    assert resolve_model(str(out)).ae_hash == resolve_model(str(base)).ae_hash
    text = resolve_model(str(out)).load_text_encoder()
    assert text.text_hash == resolve_model(str(base)).load_text_encoder().text_hash


def test_untouched_tensors_keep_their_very_bytes(base, pairs, tmp_path):
    """Also what is no number, and types that torch cannot read here."""
    weights = base / "model.safetensors"
    tensors = load_file(weights)
    key = "pretransform.model.bottleneck.bias"
    tensors[key] = torch.full_like(tensors[key], float("nan"))
    save_file(tensors, weights, {"format": "pt"})
    merge_into_checkpoint(pairs, base, out=tmp_path / "merged", card="")
    before, after = read_header(weights), read_header(tmp_path / "merged" / "model.safetensors")
    changed = {checkpoint_key(site) for adapter, _ in pairs for site in adapter.tensors}
    assert list(before.entries) == list(after.entries)
    old, new = weights.read_bytes(), (tmp_path / "merged" / "model.safetensors").read_bytes()
    for name, entry in before.entries.items():
        other = after.entries[name]
        same = (
            old[before.data_start + entry.start : before.data_start + entry.end]
            == new[after.data_start + other.start : after.data_start + other.end]
        )
        assert same == (name not in changed)


def test_strength_zero_writes_the_very_same_weights(base, pairs, tmp_path):
    out = tmp_path / "merged"
    nothing = [(adapter, 0.0) for adapter, _ in pairs]
    assert merge_into_checkpoint(nothing, base, out=out, card="").num_changed == 0
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_half_precision_file_rounds_once_and_says_how_much_it_loses(small_model, pairs, tmp_path):
    report = merge_into_checkpoint(pairs, small_model, out=tmp_path / "half", card="")
    assert 0.0 < report.rounding < 0.05
    stacked = stacked_state(small_model, pairs)
    merged = load_file(tmp_path / "half" / "model.safetensors")
    key = "model.model.transformer.project_in.weight"
    assert torch.equal(merged[key], stacked["model.transformer.project_in.weight"].half())


def test_changed_weights_can_be_kept_whole(small_model, pairs, tmp_path):
    out = tmp_path / "whole"
    report = merge_into_checkpoint(pairs, small_model, out=out, card="", dtype=torch.float32)
    assert report.rounding == 0.0
    merged = resolve_model(str(out)).load_denoiser().state_dict()
    stacked = stacked_state(small_model, pairs)
    assert all(torch.equal(merged[name], stacked[name]) for name in stacked)


def test_an_existing_folder_stays_unless_asked(base, pairs, tmp_path):
    out = tmp_path / "merged"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(AdapterError, match=r"exists already\. Pass --force"):
        merge_into_checkpoint(pairs, base, out=out, card="")
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    with pytest.raises(AdapterError, match=r"merged is no model folder and would be lost\. Give"):
        merge_into_checkpoint(pairs, base, out=out, card="", overwrite=True)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "model_config.json").write_text("{}")
    merge_into_checkpoint(pairs, base, out=out, card="", overwrite=True)
    assert not (out / "mine.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "merged"]


def test_a_full_disk_leaves_nothing_behind(base, pairs, tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_sync", full)
    with pytest.raises(OSError, match="No space left on device") as failure:
        merge_into_checkpoint(pairs, base, out=tmp_path / "merged", card="")
    assert failure.value.filename == str(tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_layer_that_the_checkpoint_lacks_is_named(base, pairs, tmp_path):
    weights = base / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.model.preprocess_conv.weight"]
    save_file(tensors, weights)
    with pytest.raises(AdapterMismatchError, match=r"no such layers\s+model.preprocess_conv"):
        merge_into_checkpoint(pairs, base, out=tmp_path / "merged", card="")
    assert not (tmp_path / "merged").exists()


def test_a_folder_without_weights_is_refused(base, pairs, tmp_path):
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is no model folder: it has no model.safetensors"):
        merge_into_checkpoint(pairs, base, out=tmp_path / "merged", card="")
