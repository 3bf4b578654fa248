from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Generator, nn

from sa3lora.adapters.inject import adapter_parameters
from sa3lora.errors import RecipeError
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.recipe import ObjectiveSection, Recipe, read_prompts
from sa3lora.training.prior import draw_prompts, prior_loss, prior_prompts
from sa3lora.training.processes import accelerated
from sa3lora.training.session import load_denoiser, set_up
from sa3lora.training.step import MicroBatch, prepare_step

_TEXT = [torch.randn(n + 2, 24, generator=Generator().manual_seed(n)) for n in range(2)]


@pytest.fixture
def denoiser(source: ModelSource, make_recipe: Callable[..., Recipe]) -> Denoiser:
    with accelerated("cpu") as accelerator:
        return load_denoiser(set_up(make_recipe(), source=source, accelerator=accelerator))


def _batch(source: ModelSource, dropout: float = 0.0) -> MicroBatch:
    mask = torch.arange(14) < torch.tensor([[9], [14]])
    [batch] = prepare_step(
        [torch.randn(2, 12, 14, generator=Generator().manual_seed(1))],
        masks=[mask],
        seconds=[torch.tensor([9.0, 14.0]) * 32 / 8000],
        objective=ObjectiveSection(silence_s=0, prompt_dropout=dropout),
        model_config=source.config,
        generators=[Generator().manual_seed(3)],
    )
    return batch


def _change(denoiser: Denoiser, amount: float) -> dict[str, nn.Parameter]:
    generator = Generator().manual_seed(0)
    parameters = dict(adapter_parameters(denoiser))
    with torch.no_grad():
        for name, p in parameters.items():
            if "lora_B" in name:
                p.copy_(amount * torch.randn(p.shape, generator=generator))
    return parameters


def test_a_fresh_adapter_is_at_no_distance_and_a_changed_one_grows_with_its_strength(
    source: ModelSource, denoiser: Denoiser
) -> None:
    batch = _batch(source)
    assert float(prior_loss(denoiser, batch, text=_TEXT).detach()) == 0
    distances = []
    for amount in (0.01, 0.02, 0.04):
        _change(denoiser, amount)
        distances.append(float(prior_loss(denoiser, batch, text=_TEXT).detach()))
    assert 0 < distances[0] < distances[1] < distances[2]


def test_only_the_adapter_feels_it_and_goes_back_towards_the_base(
    source: ModelSource, denoiser: Denoiser
) -> None:
    batch = _batch(source)
    parameters = _change(denoiser, 0.03)
    before = prior_loss(denoiser, batch, text=_TEXT)
    torch.autograd.backward(before)
    frozen = [p for p in denoiser.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)
    assert all(p.requires_grad for p in parameters.values()), "the rest has ended"
    gradients = {k: p.grad for k, p in parameters.items() if p.grad is not None}
    assert gradients.keys() == parameters.keys()
    norm = sum(float(g.square().sum()) for g in gradients.values()) ** 0.5
    with torch.no_grad():
        for name, gradient in gradients.items():
            parameters[name] -= 1e-3 / norm * gradient
    assert float(prior_loss(denoiser, batch, text=_TEXT).detach()) < float(before.detach())


def test_neutral_prompts_are_never_dropped(source: ModelSource, denoiser: Denoiser) -> None:
    _change(denoiser, 0.03)
    other = [text + 1 for text in _TEXT]
    batch = _batch(source, dropout=1.0)
    losses = [float(prior_loss(denoiser, batch, text=text).detach()) for text in (_TEXT, other)]
    assert losses[0] != losses[1]


def test_prompts_come_from_the_recipe_or_the_packaged_list_and_only_where_they_count() -> None:
    assert prior_prompts(ObjectiveSection()) == []
    assert prior_prompts(ObjectiveSection(prior_weight=0.5)) == read_prompts("neutral")
    own = ObjectiveSection(prior_weight=0.5, prior_prompts=["a", "b"])
    assert prior_prompts(own) == ["a", "b"]


def test_every_prompt_is_drawn_about_as_often() -> None:
    drawn = Counter(draw_prompts("abcd", 4000, generator=Generator().manual_seed(0)))
    # four standard deviations of a binomial share
    assert all(abs(n - 1000) < 4 * (4000 * 0.25 * 0.75) ** 0.5 for n in drawn.values())
    assert set(drawn) == set("abcd")


def test_an_empty_list_of_prompts_is_refused(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match=r"objective\.prior_prompts"):
        make_recipe("objective.prior_prompts=[]")
