import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sa3lora.adapters.checkpoint import merge_into_checkpoint
from sa3lora.adapters.effective import effective_weight, terms_of
from sa3lora.adapters.extract import extract_adapter
from sa3lora.adapters.files import read_adapter
from sa3lora.adapters.sites import site_shapes
from sa3lora.adapters.weights import CheckpointWeights
from sa3lora.errors import AdapterError, AdapterMismatchError
from sa3lora.models.source import resolve_model


@pytest.fixture(scope="module")
def folders(small_model, tmp_path_factory):
    """The small model with float32 weights, and the same with an adapter of rank 3 in it."""
    root = tmp_path_factory.mktemp("extract")
    base, tuned = root / "base", root / "tuned"
    shutil.copytree(small_model, base, ignore=shutil.ignore_patterns("io.*", "adapter_*"))
    base.chmod(0o755)
    tensors = {key: t.float() for key, t in load_file(base / "model.safetensors").items()}
    (base / "model.safetensors").unlink()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    adapter = read_adapter(small_model / "adapter_lora.safetensors")
    merge_into_checkpoint([(adapter, 1.0)], base, out=tuned, card="")
    return base, tuned, adapter


def extract(base, tuned, rank):
    source = resolve_model(str(base))
    weights = [CheckpointWeights(folder / "model.safetensors") for folder in (base, tuned)]
    sites = sorted(site_shapes(source.load_denoiser()))
    return extract_adapter(
        *weights, rank, sites=sites, base_id="small", dit_hash=source.dit_hash, title="t"
    )


def test_what_was_merged_comes_out_again(folders):
    base, tuned, adapter = folders
    found = extract(base, tuned, 3)
    assert found.adapter.sites == adapter.sites
    assert found.adapter.metadata["sa3lora.base_id"] == "small"
    assert found.beyond == []
    assert max(one.share for one in found.lost.values()) < 1e-8
    weights = CheckpointWeights(base / "model.safetensors")
    for site in adapter.sites:
        expected = effective_weight(weights(site), terms_of(site, [(adapter, 1.0)]))
        merged = effective_weight(weights(site), terms_of(site, [(found.adapter, 1.0)]))
        torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-6)


def test_a_lower_rank_tells_its_error(folders):
    base, tuned, _ = folders
    shares = [one.share for one in extract(base, tuned, 1).lost.values()]
    assert 0.05 < min(shares) <= max(shares) < 0.7


def test_what_no_adapter_can_hold_is_named(folders, tmp_path):
    base, tuned, _ = folders
    other = tmp_path / "other"
    shutil.copytree(tuned, other)
    tensors = load_file(other / "model.safetensors")
    key = "model.model.transformer.memory_tokens"
    tensors[key] = tensors[key] + 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    assert extract(base, other, 2).beyond == [key]


def test_equal_models_have_nothing_to_extract(folders):
    base, _, _ = folders
    with pytest.raises(AdapterError, match="have the same layers: nothing to extract"):
        extract(base, base, 2)


def test_other_models_are_refused(folders, small_model):
    base, _, _ = folders
    with pytest.raises(AdapterMismatchError, match="are not one model"):
        extract(base, small_model.parent / "medium", 2)
