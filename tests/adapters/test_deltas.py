import pytest
import torch

from sa3lora.adapters.config import ADAPTER_TYPES
from sa3lora.adapters.deltas import delta, svd_basis, trained_weight

# The matrices and results are worked examples of the released tools: r = 2, alpha = 4, magnitudes
# 1.1 times the norms of the base (0.9 for the columns of bora).
W = torch.tensor([[1.0, 2, 0, -1], [0, 1, 1, 0], [2, 0, -2, 1]])
TENSORS = {
    "lora_A": torch.tensor([[1.0, 0, -1, 0.5], [0, 1, 0.5, 0]]),
    "lora_B": torch.tensor([[0.5, 0], [0, -1], [1, 0.5]]),
    "M_xs": torch.tensor([[0.5, -0.25], [0, 1]]),
    "magnitude_r": 1.1 * W.norm(dim=1),
    "magnitude_c": 0.9 * W.norm(dim=0),
}
SCALE = 2.0
EXPECTED = {
    ("lora", 1.0): [[2, 2, -1, -0.5], [0, -1, 0, 0], [4, 1, -3.5, 2]],
    ("dora-rows", 1.0): [
        [1.77185, 1.77185, -0.88593, -0.44296],
        [0, -1.55563, 0, 0],
        [2.28917, 0.57229, -2.00302, 1.14459],
    ],
    ("dora-rows", 0.5): [
        [1.52083, 2.02777, -0.50694, -0.76041],
        [0, 0, 1.55563, 0],
        [2.26749, 0.37791, -2.07853, 1.13374],
    ],
    ("dora-cols", 1.0): [
        [1.1, 2.00832, -0.67572, -0.3773],
        [0, -1.00416, 0, 0],
        [2.2, 1.00416, -2.36504, 1.50919],
    ],
    ("bora", 1.0): [
        [1.2318, 1.46963, -0.81403, -0.45938],
        [0, -1.29029, 0, 0],
        [1.59144, 0.47468, -1.84048, 1.187],
    ],
    ("lora-xs", 1.0): [
        [1.64495, 3.50262, 0.23591, -1.61015],
        [0.13826, 1.77084, 1.32442, -0.39311],
        [2.46573, -0.47472, -2.78156, 1.47122],
    ],
    ("dora-rows-xs", 1.0): [
        [1.05582, 2.24816, 0.15142, -1.03348],
        [0.09558, 1.22421, 0.91559, -0.27177],
        [2.02121, -0.38914, -2.2801, 1.20599],
    ],
    ("dora-cols-xs", 1.0): [
        [1.36355, 2.1792, 0.1878, -1.13022],
        [0.11461, 1.10175, 1.05432, -0.27594],
        [2.04392, -0.29535, -2.2143, 1.0327],
    ],
    ("bora-xs", 1.0): [
        [0.93096, 1.74734, 0.12379, -0.81635],
        [0.08428, 0.95149, 0.7485, -0.21467],
        [1.78219, -0.30245, -1.86398, 0.95262],
    ],
}


def tensors_of(adapter_type):
    axis = 1 if "rows" in adapter_type else 0
    return {**TENSORS, "magnitude": 1.1 * W.norm(dim=axis)}


@pytest.mark.parametrize(("adapter_type", "strength"), EXPECTED)
def test_trained_weight_gives_the_worked_numbers(adapter_type, strength):
    result = trained_weight(
        W, tensors_of(adapter_type), adapter_type=adapter_type, scale=SCALE, strength=strength
    )
    expected = torch.tensor(EXPECTED[adapter_type, strength])
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("adapter_type", ADAPTER_TYPES)
def test_delta_is_what_training_added(adapter_type):
    tensors = tensors_of(adapter_type)
    change = delta(W, tensors, adapter_type=adapter_type, scale=SCALE)
    trained = trained_weight(W, tensors, adapter_type=adapter_type, scale=SCALE)
    torch.testing.assert_close(W + change, trained)


@pytest.mark.parametrize("adapter_type", ADAPTER_TYPES)
def test_released_strength_zero_is_the_base(adapter_type):
    tensors = tensors_of(adapter_type)
    result = trained_weight(W, tensors, adapter_type=adapter_type, scale=SCALE, strength=0.0)
    assert torch.equal(result, W)


def test_weighted_change_of_a_magnitude_type_gives_the_worked_numbers():
    change = delta(W, tensors_of("dora-rows"), adapter_type="dora-rows", scale=SCALE)
    expected = torch.tensor(
        [
            [1.38593, 1.88593, -0.44296, -0.72148],
            [0, -0.27782, 0.5, 0],
            [2.14459, 0.28615, -2.00151, 1.07229],
        ]
    )
    torch.testing.assert_close(W + 0.5 * change, expected, rtol=0, atol=2e-5)


def test_order_of_released_chains_gives_the_worked_numbers():
    first = tensors_of("dora-rows")
    halved = {"lora_A": -0.5 * TENSORS["lora_A"], "magnitude": 0.55 * W.norm(dim=1)}
    second = {**first, **halved}

    def apply(weight, tensors):
        return trained_weight(weight, tensors, adapter_type="dora-rows", scale=SCALE)

    rows = apply(apply(W, first), second)[0], apply(apply(W, second), first)[0]
    expected = (
        torch.tensor([0.7383, 1.02855, -0.22403, -0.40226]),
        torch.tensor([1.86624, 1.60356, -1.06446, -0.26955]),
    )
    torch.testing.assert_close(rows, expected, rtol=0, atol=2e-5)


def test_singular_vectors_have_their_largest_entry_positive():
    left, right = svd_basis(W, 2)
    expected_left = torch.tensor([[0.14877, 0.91464], [-0.21488, 0.40096], [0.96524, -0.05171]])
    expected_right = torch.tensor(
        [[0.6711, 0.31062], [0.02668, 0.85399], [-0.69244, 0.19313], [0.26352, -0.37003]]
    )
    torch.testing.assert_close(left, expected_left, rtol=0, atol=1e-5)
    torch.testing.assert_close(right, expected_right, rtol=0, atol=1e-5)


def test_basis_of_more_than_the_smaller_side_is_refused():
    with pytest.raises(ValueError, match=r"rank 4 exceeds the smaller side of \(3, 4\)"):
        svd_basis(W, 4)


def test_change_of_a_convolution_has_its_shape():
    kernel = W[:, :, None]
    change = delta(kernel, tensors_of("bora"), adapter_type="bora", scale=SCALE)
    matrix = delta(W, tensors_of("bora"), adapter_type="bora", scale=SCALE)
    assert torch.equal(change, matrix[:, :, None])
