import pytest
import torch

from sa3lora.adapters.bases import HASH_KEY, check_bases, pin_bases
from sa3lora.adapters.compat import check_base
from sa3lora.adapters.deltas import delta
from sa3lora.adapters.files import read_adapter, write_adapter
from sa3lora.adapters.sites import find_layers, site_shapes
from sa3lora.errors import AdapterError, AdapterMismatchError


@pytest.fixture
def weights(root):
    return {site: layer.weight.detach().clone() for site, layer in find_layers(root).items()}


def other(weights):
    return {site: weight + 0.1 * weight.std() for site, weight in weights.items()}


def test_a_pinned_file_is_good_on_its_own_weights_alone(make_adapter, weights):
    pinned = pin_bases(make_adapter("bora-xs"), weights.__getitem__, carry=False)
    assert len(pinned.metadata[HASH_KEY]) == 64
    check_bases(pinned, weights.__getitem__, label="a")
    with pytest.raises(AdapterMismatchError, match=r"a is bora-xs and was made for other weights"):
        check_bases(pinned, other(weights).__getitem__, label="a")


@pytest.mark.parametrize("kind", ["lora-xs", "dora-rows-xs", "dora-cols-xs", "bora-xs"])
def test_carried_bases_mean_the_same_directions_on_other_weights(
    make_adapter, weights, tmp_path, kind
):
    adapter = make_adapter(kind)
    carried = pin_bases(adapter, weights.__getitem__, carry=True)
    write_adapter(tmp_path / "a.safetensors", carried)
    read = read_adapter(tmp_path / "a.safetensors")
    assert read.has_bases
    assert read.content_hash == carried.content_hash
    check_bases(read, other(weights).__getitem__, label="a")
    for site in adapter.sites:
        arguments = {"adapter_type": kind, "scale": adapter.scale(site)}
        before = delta(weights[site], adapter.tensors[site], **arguments)
        assert torch.equal(delta(weights[site], read.tensors[site], **arguments), before)
    if kind == "lora-xs":  # its change does not depend on the base any more
        moved = other(weights)
        for site in adapter.sites:
            found = delta(moved[site], read.tensors[site], adapter_type=kind, scale=1.0)
            assert torch.equal(found, delta(weights[site], adapter.tensors[site],
                                            adapter_type=kind, scale=1.0))  # fmt: skip


def test_only_a_file_that_carries_its_bases_goes_on_a_sibling(root, make_adapter, weights):
    metadata = {"sa3lora.base_id": "medium-base", "sa3lora.dit_hash": "h"}
    adapter = make_adapter("lora-xs", metadata=metadata)
    fit = {"name": "medium", "dit_hash": "other", "shapes": site_shapes(root)}
    with pytest.raises(AdapterMismatchError, match="--with-bases"):
        check_base(adapter, **fit)
    carried = pin_bases(adapter, weights.__getitem__, carry=True)
    assert check_base(carried, **fit) == "sibling"


def test_half_a_basis_is_refused(make_adapter, weights, tmp_path):
    carried = pin_bases(make_adapter("lora-xs"), weights.__getitem__, carry=True)
    del carried.tensors["model.transformer.project_in"]["V"]
    write_adapter(tmp_path / "a.safetensors", carried)
    with pytest.raises(AdapterError, match=r"project_in.*\.V: missing, lora-xs needs it"):
        read_adapter(tmp_path / "a.safetensors")
