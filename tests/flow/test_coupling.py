from itertools import permutations

import pytest
import torch

from sa3lora.flow import (
    couple_noise,
    exact_assignment,
    greedy_assignment,
    pairwise_cost,
    sinkhorn_plan,
)

# worked example of the released training objective (spec): mean cost 3.5625, order 2 0 3 1
DATA = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0], [0.5, 0.5]])[:, :, None]
NOISE = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [2.0, 0.0], [0.0, -1.0]])[:, :, None]


def randn(seed, shape=(5, 3, 7)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def total(cost, order):
    return cost[torch.arange(len(cost)), order].sum()


def test_the_worked_example_comes_out():
    assert pairwise_cost(DATA, NOISE).mean().item() == pytest.approx(3.5625)
    order = greedy_assignment(sinkhorn_plan(DATA, NOISE))
    assert order.tolist() == [2, 0, 3, 1]


def test_the_plan_is_doubly_stochastic():
    plan = sinkhorn_plan(randn(0), randn(1))
    torch.testing.assert_close(plan.sum(dim=0), torch.ones(5))
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(5), atol=1e-4, rtol=0)


def test_more_iterations_bring_the_rows_nearer_to_one():
    one, many = (
        (sinkhorn_plan(DATA, NOISE, iterations=n).sum(dim=1) - 1).abs().max() for n in (1, 20)
    )
    assert many < one


def test_cost_is_the_squared_distance():
    data, noise = randn(0), randn(1)
    expected = (data[:, None] - noise[None]).square().flatten(2).sum(dim=2)
    torch.testing.assert_close(pairwise_cost(data, noise), expected, atol=1e-4, rtol=1e-5)


def test_masked_cost_counts_only_the_real_frames_of_each_clip():
    data, noise = randn(0), randn(1)
    lengths = [7, 3, 5, 1, 6]
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    cost = pairwise_cost(data, noise, mask=mask)
    for i, n in enumerate(lengths):
        expected = (data[i, None, :, :n] - noise[:, :, :n]).square().sum(dim=(1, 2))
        torch.testing.assert_close(cost[i], expected, atol=1e-4, rtol=1e-5)


def test_greedy_assignment_serves_rows_in_order():
    plan = torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.8, 0.3], [0.6, 0.7, 0.1]])
    assert greedy_assignment(plan).tolist() == [1, 2, 0]


def test_greedy_assignment_leaves_the_plan_untouched():
    plan = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    before = plan.clone()
    greedy_assignment(plan)
    assert torch.equal(plan, before)


def test_exact_assignment_is_the_cheapest_of_all_permutations():
    data, noise = randn(0), randn(1)
    cost = pairwise_cost(data, noise)
    cheapest = min(total(cost, torch.tensor(order)) for order in permutations(range(5)))
    torch.testing.assert_close(total(cost, exact_assignment(data, noise)), cheapest)


def test_exact_assignment_ignores_padding_when_masked():
    data, noise = randn(0), randn(1)
    mask = torch.arange(7)[None].expand(5, -1) < 4
    louder = data.clone()
    louder[:, :, 4:] = 50 * randn(2)[:, :, 4:]
    assert torch.equal(
        exact_assignment(data, noise, mask=mask), exact_assignment(louder, noise, mask=mask)
    )


@pytest.mark.parametrize("method", ["sinkhorn", "exact"])
def test_coupling_reorders_noise_and_lowers_the_cost(method):
    data = randn(3)
    noise = (data + 0.1 * randn(4))[[3, 0, 4, 1, 2]]
    coupled = couple_noise(data, noise, method=method)
    assert torch.equal(coupled, noise[[1, 3, 4, 0, 2]])


def test_no_coupling_leaves_noise_alone():
    assert torch.equal(couple_noise(randn(0), randn(1), method="none"), randn(1))


def test_a_batch_of_one_is_left_alone():
    data, noise = randn(0)[:1], randn(1)[:1]
    assert torch.equal(couple_noise(data, noise, method="sinkhorn"), noise)


def test_an_unknown_coupling_is_refused():
    with pytest.raises(ValueError, match=r"none, sinkhorn, exact, got 'ot'"):
        couple_noise(randn(0), randn(1), method="ot")
