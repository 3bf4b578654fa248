from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from sa3lora.flow import couple_noise
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.probe import StepLoss
from sa3lora.recipe import ObjectiveSection, Recipe
from sa3lora.training.flow_objective import FlowObjective
from sa3lora.training.processes import accelerated
from sa3lora.training.session import Setup, build_text, load_denoiser, set_up
from sa3lora.training.step import MicroBatch, prepare_step

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def losses_of(source: ModelSource, make_recipe: MakeRecipe) -> Callable[..., list[StepLoss]]:
    def losses(*overrides: str, micro_batches: int = 1) -> list[StepLoss]:
        with accelerated("cpu") as accelerator:
            setup: Setup = set_up(make_recipe(*overrides), source=source, accelerator=accelerator)
            denoiser: Denoiser = load_denoiser(setup)
            objective = FlowObjective(setup, denoiser=denoiser, text=build_text(setup))
            rounds = [setup.data.next_round() for _ in range(micro_batches)]
            with torch.random.fork_rng():
                return list(objective.prepare(rounds, step=1).losses())

    return losses


def test_min_snr_weighs_each_clip_and_leaves_what_is_logged(
    losses_of: Callable[..., list[StepLoss]],
) -> None:
    [plain] = losses_of()
    [weighted] = losses_of("objective.min_snr_gamma=5")
    assert torch.equal(plain.per_item, weighted.per_item)
    assert torch.equal(plain.signal, weighted.signal)
    weights = torch.minimum((1 - plain.t) ** 2, 5 * plain.t**2)
    torch.testing.assert_close(weighted.total.detach(), (weights * plain.per_item).mean())


def test_the_prior_term_adds_its_weight_and_disturbs_no_other_draw(
    losses_of: Callable[..., list[StepLoss]],
) -> None:
    [plain] = losses_of()
    [kept] = losses_of("objective.prior_weight=0.5", "objective.prior_prompts=[quiet]")
    assert plain.prior is None
    assert kept.prior is not None
    assert torch.equal(plain.per_item, kept.per_item)
    # the adapter is fresh, so it is where its base is
    assert float(kept.prior) == 0


def _prepare(source: ModelSource, sizes: list[int], coupling: str) -> list[MicroBatch]:
    generator = Generator().manual_seed(1)
    latents = [torch.randn(1, 12, size, generator=generator) for size in sizes]
    return prepare_step(
        latents,
        masks=[torch.ones(1, size, dtype=torch.bool) for size in sizes],
        seconds=[torch.tensor([size * 32 / 8000]) for size in sizes],
        objective=ObjectiveSection(silence_s=0, coupling=coupling),
        model_config=source.config,
        generators=[Generator().manual_seed(2 + n) for n in range(len(sizes))],
    )


@pytest.mark.parametrize("coupling", ["sinkhorn", "exact"])
def test_single_clips_of_a_step_are_coupled_like_one_batch(
    source: ModelSource, coupling: str
) -> None:
    sizes = [16] * 6
    alone = _prepare(source, sizes, "none")
    coupled = _prepare(source, sizes, coupling)

    def together(parts: list[MicroBatch]) -> Tensor:
        return torch.cat([part.draws.noise for part in parts])

    data = torch.cat([part.latents for part in alone])
    expected = couple_noise(
        data, together(alone), method=coupling, mask=torch.ones(6, 16, dtype=torch.bool)
    )
    assert torch.equal(together(coupled), expected)
    assert not torch.equal(together(coupled), together(alone))
    for one, other in zip(alone, coupled, strict=True):
        assert torch.equal(one.draws.t, other.draws.t)
        assert torch.equal(one.draws.keep, other.draws.keep)


def test_clips_of_unequal_length_are_coupled_across_a_step_too(source: ModelSource) -> None:
    sizes = [10, 16, 12, 14]
    parts = _prepare(source, sizes, "sinkhorn")
    assert [part.draws.noise.shape[2] for part in parts] == sizes
    again = _prepare(source, sizes, "sinkhorn")
    assert all(torch.equal(a.draws.noise, b.draws.noise) for a, b in zip(parts, again, strict=True))


def test_one_micro_batch_draws_the_same_however_many_a_step_may_have(
    losses_of: Callable[..., list[StepLoss]],
) -> None:
    [one] = losses_of("objective.coupling=none", "objective.silence_s=0")
    first, _ = losses_of("objective.coupling=none", "objective.silence_s=0", micro_batches=2)
    assert torch.equal(one.per_item, first.per_item)
