import pytest
import torch

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.conflict import leading_directions, measure_conflicts, principal_angles
from sa3lora.adapters.deltas import delta
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.sites import find_layers
from sa3lora.errors import AdapterError


def rank_one(out, into):
    """An adapter of one layer whose change is the outer product of two unit vectors."""
    up, down = torch.zeros(8, 1), torch.zeros(1, 6)
    up[out], down[0, into] = 1.0, 1.0
    return AdapterFile(AdapterConfig(r=1), {"layer": {"lora_A": down, "lora_B": up}})


def test_an_adapter_beside_itself_doubles():
    report = measure_conflicts([(rank_one(2, 3), 1.0), (rank_one(2, 3), 1.0)])
    (pair,) = report.layers[0].pairs
    assert (pair.cosine, pair.interference) == pytest.approx((1.0, 1.0))
    assert pair.angles_out == pytest.approx((0.0,), abs=0.1)
    assert report.layers[0].energies == pytest.approx((1.0, 1.0))
    assert report.totals[0].cosine == pytest.approx(1.0)
    against = measure_conflicts([(rank_one(2, 3), 1.0), (rank_one(2, 3), -1.0)])
    assert against.totals[0].interference == pytest.approx(-1.0)


def test_changes_that_share_only_their_inputs_do_not_interfere():
    report = measure_conflicts([(rank_one(2, 3), 1.0), (rank_one(5, 3), 0.5)])
    (pair,) = report.layers[0].pairs
    assert (pair.cosine, pair.interference) == pytest.approx((0.0, 0.0))
    assert pair.angles_out == pytest.approx((90.0,))
    assert pair.angles_in == pytest.approx((0.0,), abs=0.1)
    assert report.layers[0].energies == pytest.approx((1.0, 0.5))


def test_interference_is_the_energy_of_the_sum(root, make_adapter):
    layers = find_layers(root)
    weights = {site: layer.weight for site, layer in layers.items()}
    adapters = [(make_adapter("bora"), 0.7), (make_adapter("lora", seed=1), -0.4)]
    report = measure_conflicts(adapters, weights)
    assert [layer.site for layer in report.layers] == sorted(layers)
    for layer in report.layers:
        one, two = (
            strength
            * delta(
                weights[layer.site], adapter.tensors[layer.site],
                adapter_type=adapter.config.type, scale=1.0,
            )
            for adapter, strength in adapters
        )  # fmt: skip
        apart = one.norm() ** 2 + two.norm() ** 2
        expected = float((one + two).norm() ** 2 / apart - 1.0)
        assert layer.pairs[0].interference == pytest.approx(expected, abs=1e-5)
        assert layer.relative[0] == pytest.approx(float(one.norm() / weights[layer.site].norm()))


def test_leading_directions_are_those_of_the_svd():
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(9, 3, generator=generator) @ torch.randn(3, 7, generator=generator)
    left, _, right = torch.linalg.svd(matrix.double())
    outputs, inputs = leading_directions(matrix, 3)
    assert max(principal_angles(outputs, left[:, :3])) < 0.1
    assert max(principal_angles(inputs, right[:3].T)) < 0.1
    assert leading_directions(torch.zeros(4, 5), 2)[0].shape == (4, 0)
    assert leading_directions(matrix, 5)[0].shape == (9, 3)


def test_a_layer_that_one_adapter_leaves_alone_has_no_pair(make_adapter):
    one = make_adapter(sites=["model.preprocess_conv", "model.transformer.project_in"])
    report = measure_conflicts([(one, 1.0), (make_adapter(sites=["model.preprocess_conv"]), 1.0)])
    alone = next(layer for layer in report.layers if "project_in" in layer.site)
    assert alone.pairs == ()
    assert alone.energies[1] == 0.0


def test_magnitudes_need_the_base_weights(make_adapter):
    with pytest.raises(AdapterError, match="what dora-rows changes depends on the base weights"):
        measure_conflicts([(make_adapter(), 1.0), (make_adapter("dora-rows"), 1.0)])
