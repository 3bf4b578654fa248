from itertools import permutations

import pytest
import torch

from sa3lora.flow import (
    couple_across,
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


def _parts(sizes: list[tuple[int, int]], seed: int = 5) -> tuple[list[torch.Tensor], ...]:
    """Clips of unequal length, a noise for each as long as the longest, and the clips' masks."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(frames for _, frames in sizes)
    data = [torch.randn(count, 3, frames, generator=generator) for count, frames in sizes]
    noise = [torch.randn(count, 3, longest, generator=generator) for count, _ in sizes]
    masks = [torch.ones(count, frames, dtype=torch.bool) for count, frames in sizes]
    return data, noise, masks


@pytest.mark.parametrize("method", ["sinkhorn", "exact", "none"])
@pytest.mark.parametrize("sizes", [[(1, 6)] * 6, [(2, 6), (3, 6), (1, 6)]])
def test_micro_batches_of_one_length_are_coupled_as_the_one_batch_they_make(method, sizes):
    data, noise, masks = _parts(sizes)
    parts = couple_across(data, noise, method=method, masks=masks)
    assert [len(part) for part in parts] == [count for count, _ in sizes]
    whole = couple_noise(torch.cat(data), torch.cat(noise), method=method, mask=torch.cat(masks))
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("method", ["sinkhorn", "exact"])
def test_single_clips_of_a_step_trade_their_noise_and_lie_nearer_to_it(method):
    data, noise, masks = _parts([(1, frames) for frames in (4, 9, 6, 7, 5, 8)])
    parts = couple_across(data, noise, method=method, masks=masks)
    sources = [
        next(n for n, own in enumerate(noise) if torch.equal(part, own[..., : part.shape[2]]))
        for part in parts
    ]
    assert sorted(sources) == list(range(6)), "every noise is used once"
    assert sources != list(range(6)), "and not all by their own clips"
    pairs = zip(data, noise, parts, strict=True)
    distances = [
        ((d - n[..., : d.shape[2]]).square().sum(), (d - p).square().sum()) for d, n, p in pairs
    ]
    before, after = torch.tensor(distances).sum(dim=0)
    if method == "exact":
        assert after < before


def test_noise_that_does_not_reach_the_longest_clip_is_refused():
    data, noise, masks = _parts([(1, 4), (1, 9)])
    with pytest.raises(ValueError, match=r"at least 9 frames, got \[4, 9\]"):
        couple_across(data, [noise[0][..., :4], noise[1]], method="exact", masks=masks)
