import pytest
import torch

from sa3lora.adapters.norms import col_norms, row_norms, row_squares, weighted_col_squares


@pytest.fixture
def matrices():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 5, generator=generator)
    down = torch.randn(3, 5, generator=generator, requires_grad=True)
    up = torch.randn(7, 3, generator=generator, requires_grad=True)
    rows = torch.rand(7, generator=generator).add(0.5).requires_grad_()
    return weight, down, up, rows


def gradients(value, *inputs):
    return torch.autograd.grad((value * torch.arange(1.0, len(value) + 1)).sum(), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_norms_and_their_gradients_are_those_of_the_whole_sum(matrices, dtype):
    weight, down, up, _ = matrices
    stored = weight.to(dtype)
    found = row_norms(stored, down, up, squares=row_squares(stored))
    expected = (stored.float() + up @ down).norm(dim=1)
    torch.testing.assert_close(found, expected)
    assert found.dtype == torch.float32
    for ours, theirs in zip(gradients(found, down, up), gradients(expected, down, up), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_col_norms_and_their_gradients_are_those_of_the_scaled_sum(matrices):
    weight, down, up, rows = matrices
    squares = weighted_col_squares(weight, rows.square())
    found = col_norms(weight, down, up, squares=squares, rows=rows)
    expected = (rows[:, None] * (weight + up @ down)).norm(dim=0)
    torch.testing.assert_close(found, expected)
    inputs = (down, up, rows)
    for ours, theirs in zip(gradients(found, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_row_that_cancels_to_zero_has_a_finite_gradient():
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    down = torch.tensor([[1.0, 0.0]], requires_grad=True)
    up = torch.tensor([[-1.0], [0.0]], requires_grad=True)
    norms = row_norms(weight, down, up, squares=row_squares(weight))
    assert norms[0] < 1e-12
    assert all(torch.isfinite(grad).all() for grad in gradients(norms, down, up))
