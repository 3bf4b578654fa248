import pytest
import torch

from sa3lora.adapters.deltas import delta, low_rank_factors
from sa3lora.adapters.kron import kron_shape

FORMS = {
    "whole": {"lokr_w1": (3, 2), "lokr_w2": (4, 5)},
    "tall": {"lokr_w1": (3, 2), "lokr_w2": (7, 2)},
    "second apart": {"lokr_w1": (3, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5)},
    "both apart": {
        "lokr_w1_a": (3, 1), "lokr_w1_b": (1, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5),
    },
    "kernel": {"lokr_w1": (3, 2), "lokr_w2": (4, 5, 3)},
}  # fmt: skip


def draw(form):
    return {name: torch.randn(shape) for name, shape in FORMS[form].items()}


def by_hand(tensors):
    """The product as PEFT makes it."""
    one, two = tensors.get("lokr_w1"), tensors.get("lokr_w2")
    one = tensors["lokr_w1_a"] @ tensors["lokr_w1_b"] if one is None else one
    two = tensors["lokr_w2_a"] @ tensors["lokr_w2_b"] if two is None else two
    made = torch.kron(one, two)
    # PEFT's layout where there is a kernel, see the module.
    return made if two.ndim == 2 else made.reshape(len(one) * len(two), -1, two.shape[2])


@pytest.mark.parametrize("form", FORMS)
def test_the_change_is_the_scaled_kronecker_product(form):
    tensors = draw(form)
    expected = 0.5 * by_hand(tensors)
    weight = torch.randn(expected.shape)
    found = delta(weight, tensors, adapter_type="lokr", scale=0.5)
    torch.testing.assert_close(found, expected)
    assert kron_shape(FORMS[form]) == tuple(expected.flatten(1).shape)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_change_as_a_product_of_two_matrices(form):
    tensors = draw(form)
    expected = 0.5 * by_hand(tensors).flatten(1)
    down, up = low_rank_factors(expected, tensors, adapter_type="lokr", scale=0.5)
    torch.testing.assert_close(up @ down, expected)
    assert down.shape[0] <= (12 if form == "kernel" else 8)


@pytest.mark.parametrize(
    "shapes",
    [
        {"lokr_w1": (3, 2)},
        {"lokr_w1": (3, 2), "lokr_w2_a": (4, 2)},
        {"lokr_w1": (3, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (3, 5)},
        {"lokr_w1": (3, 2), "lokr_w2": (4, 5), "lokr_w2_a": (4, 2)},
        {"lokr_w1": (3, 2, 1), "lokr_w2": (4, 5)},
        {"lokr_w1": (3, 0), "lokr_w2": (4, 5)},
        {"lokr_w1": (3, 2), "lokr_w2": (4, 5), "lokr_t2": (2, 2, 3, 1)},
    ],
)
def test_tensors_that_make_no_product_have_no_shape(shapes):
    assert kron_shape(shapes) is None
