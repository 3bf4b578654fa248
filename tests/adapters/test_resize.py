import math

import pytest
import torch

from sa3lora.adapters.deltas import delta
from sa3lora.adapters.files import read_adapter, write_adapter
from sa3lora.adapters.lowrank import truncate_matrix, truncate_product
from sa3lora.adapters.resize import Resizer, file_size
from sa3lora.adapters.sites import find_layers
from sa3lora.errors import AdapterError


@pytest.fixture
def weights(root):
    kept = {site: layer.weight.detach().clone() for site, layer in find_layers(root).items()}
    return kept.__getitem__


def change(adapter, site, weight):
    return delta(
        weight, adapter.tensors[site], adapter_type=adapter.config.type, scale=adapter.scale(site)
    )


@pytest.mark.parametrize("shape", [(20, 7), (7, 20), (8, 8)])
@pytest.mark.parametrize("rank", [1, 3, 30])
def test_the_best_low_rank_change_and_what_it_leaves_out(shape, rank):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator)
    values = torch.linalg.svdvals(matrix.double())
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    product = truncate_product(right, left * torch.linalg.svdvals(matrix), rank)
    for found in (truncate_matrix(matrix, rank), product):
        error = float((matrix.double() - found.up.double() @ found.down.double()).square().sum())
        assert found.lost == pytest.approx(float(values[rank:].square().sum()), abs=1e-4)
        assert error == pytest.approx(found.lost, abs=1e-4)
        assert found.energy == pytest.approx(float(matrix.double().square().sum()), rel=1e-5)


def test_a_change_of_nothing_stays_nothing():
    for found in (
        truncate_matrix(torch.zeros(5, 4), 2),
        truncate_product(torch.zeros(2, 4), torch.zeros(5, 2), 2),
    ):
        assert torch.equal(found.up @ found.down, torch.zeros(5, 4))
        assert found.energy == found.lost == 0.0


@pytest.mark.parametrize("kind", ["lora", "dora-cols", "bora"])
def test_its_own_rank_changes_nothing(weights, make_adapter, kind):
    adapter = make_adapter(kind, r=4, alpha=6.0)
    found = Resizer(adapter, None).to_rank(4)
    assert (found.adapter.config.type, found.kept) == (kind, pytest.approx(1.0))
    for site in adapter.sites:
        torch.testing.assert_close(
            change(found.adapter, site, weights(site)), change(adapter, site, weights(site)),
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip


def test_xs_types_get_factors_of_their_own(weights, make_adapter):
    adapter = make_adapter("dora-rows-xs", r=4)
    found = Resizer(adapter, weights).to_rank(4)
    assert found.adapter.config.type == "dora-rows"
    for site in adapter.sites:
        torch.testing.assert_close(
            change(found.adapter, site, weights(site)), change(adapter, site, weights(site)),
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip
    with pytest.raises(AdapterError, match="dora-rows-xs has its directions in the base: pass"):
        Resizer(adapter, None)


def test_a_lower_rank_loses_what_it_says(make_adapter, weights):
    adapter = make_adapter(r=5)
    found = Resizer(adapter, None).to_rank(2)
    gone, whole = 0.0, 0.0
    for site in adapter.sites:
        before = change(adapter, site, weights(site)).double()
        gone += float((before - change(found.adapter, site, weights(site))).square().sum())
        whole += float(before.square().sum())
    assert 1 - found.kept == pytest.approx(gone / whole, rel=1e-4)
    assert found.kept < 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_candidate_fits_and_has_the_size_it_says(make_adapter, tmp_path, dtype):
    adapter = make_adapter(r=6)
    limit = file_size(adapter, dtype) // 3
    candidates = Resizer(adapter, None, dtype=dtype).to_size(limit)
    assert [c.kept for c in candidates] == sorted((c.kept for c in candidates), reverse=True)
    for number, candidate in enumerate(candidates):
        file = tmp_path / f"{number}.safetensors"
        write_adapter(file, candidate.adapter, dtype=dtype)
        assert file.stat().st_size == candidate.num_bytes <= limit
        assert read_adapter(file).config.include in (None, tuple(candidate.adapter.sites))
    assert len({len(candidate.adapter.sites) for candidate in candidates}) > 1


def test_with_magnitudes_no_layer_is_left_out(make_adapter):
    adapter = make_adapter("dora-rows", r=6)
    candidates = Resizer(adapter, None).to_size(file_size(adapter, torch.float32) * 2 // 3)
    assert all(candidate.adapter.sites == adapter.sites for candidate in candidates)


def test_a_size_below_all_is_refused(make_adapter):
    with pytest.raises(AdapterError, match="100 bytes are too few for any layer; all at rank 1"):
        Resizer(make_adapter(), None).to_size(100)


def test_ranks_halve_down_to_one(make_adapter):
    ranks = [candidate.rank for candidate in Resizer(make_adapter(r=6), None).to_ranks(6)]
    assert ranks == [6, 3, 1]
    assert math.isclose(sum(ranks), 10)
