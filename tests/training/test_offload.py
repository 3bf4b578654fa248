from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sa3lora.adapters.files import read_adapter
from sa3lora.adapters.find import find_adapter
from sa3lora.adapters.inject import adapter_parameters
from sa3lora.adapters.sites import find_layers
from sa3lora.errors import RecipeError
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.flow_objective import FlowObjective
from sa3lora.training.frozen import frozen_bytes, held_in
from sa3lora.training.identity import run_identity
from sa3lora.training.processes import accelerated
from sa3lora.training.session import build_text, load_denoiser, set_up
from sa3lora.training.trainer import plan_training, train

MakeRecipe = Callable[..., Recipe]
_FEW = ("train.max_steps=3", "validate={every: 3, tuples: 4}", "train.checkpointing=true")


def _tensors(path: Path) -> dict[str, Tensor]:
    adapter = read_adapter(find_adapter(path))
    return {f"{s}.{n}": t for s, site in adapter.tensors.items() for n, t in site.items()}


@pytest.mark.parametrize(
    "settings",
    [
        ["adapter.lora_dropout=0.1"],
        ["adapter.type=lora-xs"],
        ["adapter.type=lokr"],
        ["adapter.init=pissa"],
        ["train.base_dtype=nf4"],
        ["train.base_dtype=bfloat16", "train.dtype=bfloat16"],
    ],
)
def test_an_offloaded_run_ends_in_the_same_adapter_bit_for_bit(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe, settings: list[str]
) -> None:
    found = []
    for offload in ("false", "true"):
        run = RunFolder.create(f"offload-{offload}", root=tmp_path)
        recipe = make_recipe(*_FEW, *settings, f"train.offload={offload}")
        result = train(recipe, run=run, source=source, device="cpu")
        found.append((_tensors(run.path), result.validation))
    (plain, scores), (offloaded, same_scores) = found
    assert plain.keys() == offloaded.keys()
    assert all(torch.equal(plain[key], offloaded[key]) for key in plain)
    assert scores == same_scores


def test_outside_a_blocks_turn_its_copies_are_gone(
    source: ModelSource, make_recipe: MakeRecipe
) -> None:
    copies: list[tuple[int, weakref.ref[Tensor]]] = []
    most = 0

    def watch(index: int) -> Callable[..., None]:
        def begin(block: nn.Module, _: object) -> None:
            nonlocal most
            for layer in find_layers(block).values():
                copies.append((index, weakref.ref(layer.get_parameter("weight"))))
            most = max(most, len({number for number, ref in copies if ref() is not None}))

        return begin

    with accelerated("cpu") as accelerator:
        setup = set_up(make_recipe("train.offload=true"), source=source, accelerator=accelerator)
        text, denoiser = build_text(setup), load_denoiser(setup)
        kept = _weights(denoiser)
        for index, block in enumerate(denoiser.model.transformer.layers):
            block.register_forward_pre_hook(watch(index))
        objective = FlowObjective(setup, denoiser=denoiser, text=text)
        for loss in objective.prepare([setup.data.next_round()], step=1).losses():
            torch.autograd.backward(loss.total)
            del loss
    assert all(tensor is kept[name] for name, tensor in _weights(denoiser).items())
    assert len({id(ref) for _, ref in copies}) == 2 * len(kept), "once forward, once again"
    assert not any(ref() is not None for _, ref in copies)
    assert most == 1, "when a block begins no other's copies are left"
    trained = [parameter for _, parameter in adapter_parameters(denoiser)]
    assert all(parameter.grad is not None for parameter in trained)


def _weights(denoiser: Denoiser) -> dict[str, Tensor]:
    layers = find_layers(denoiser.model.transformer.layers)
    return {name: layer.get_parameter("weight") for name, layer in layers.items()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("train.checkpointing=lean", "train.checkpointing is lean. Set it to true or auto"),
        ("train.checkpointing=false", "train.checkpointing is false. Set it to true or auto"),
        ("train.checkpointing=0.5", "train.checkpointing is 0.5. Set it to true or auto"),
        ("adapter.type=dora-rows", "dora-rows measures the weights .* Take lora, lora-xs or lokr"),
        ("train.compile=true", "compiled anew .* Set train.compile to false"),
    ],
)
def test_what_needs_the_weights_elsewhere_is_refused_before_anything_is_loaded(
    source: ModelSource, make_recipe: MakeRecipe, settings: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=f"train.offload: .*{message}"):
        plan_training(make_recipe(settings, "train.offload=true"), source=source, device="cpu")
    plan_training(make_recipe(settings), source=source, device="cpu")


def test_the_plan_says_it_and_counts_what_is_away(
    source: ModelSource, make_recipe: MakeRecipe
) -> None:
    plan = plan_training(make_recipe("train.offload=true"), source=source, device="cpu")
    assert plan.rows["offload"].endswith("every block is recomputed")
    assert plan.recomputation.describe(1) == "every block is recomputed"
    with torch.device("meta"):
        denoiser = Denoiser(source.config)
    for name in ("nf4", "bfloat16"):
        whole = frozen_bytes(denoiser, held_in(name))
        less = frozen_bytes(denoiser, held_in(name), offload=True)
        assert less.held + less.away == whole.held
        assert less.away > 0


def test_a_run_may_go_on_with_or_without_it(make_recipe: MakeRecipe) -> None:
    with_it, without = (
        run_identity(make_recipe(f"train.offload={value}"), dataset="d", dit_hash="h")
        for value in ("true", "false")
    )
    assert with_it == without
