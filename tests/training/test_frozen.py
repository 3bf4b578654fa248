"""A base in few bits: what it allows and takes, and that training on it keeps every promise."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.deltas import svd_basis
from sa3lora.adapters.files import read_adapter
from sa3lora.adapters.fold import AdapterStack
from sa3lora.adapters.inject import adapter_parameters, inject_adapter
from sa3lora.adapters.weights import CheckpointWeights
from sa3lora.errors import AdapterError, RecipeError
from sa3lora.latents.batching import BatchPlan
from sa3lora.models.config_parse import parse_config
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.fixtures import released_config
from sa3lora.models.quantised import QuantisedLinear, QuantKind, block_layers
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe, load_recipe
from sa3lora.runs import RunFolder
from sa3lora.training.bench_fits import fits_of
from sa3lora.training.data import TextEmbeddings
from sa3lora.training.flow_objective import FlowObjective
from sa3lora.training.frozen import check_base, frozen_bytes, held_in
from sa3lora.training.precision import Precision
from sa3lora.training.processes import accelerated
from sa3lora.training.session import Setup, build_text, load_denoiser, set_up
from sa3lora.training.trainer import plan_training, train
from sa3lora.training.validation import Validator
from tests.training.killing import train_whole_and_killed

MakeRecipe = Callable[..., Recipe]
KINDS = get_args(QuantKind)


def _tensors(path: Path) -> dict[str, Tensor]:
    adapter = read_adapter(path)
    return {f"{s}.{n}": t for s, site in adapter.tensors.items() for n, t in site.items()}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("adapter.type=dora-rows", "dora-rows is trained against the lengths of the weights"),
        ("adapter.type=bora-xs", "bora-xs is trained against the lengths of the weights"),
        ("adapter.type=lokr", "lokr makes a full matrix beside each weight"),
        ("adapter.init=pissa", "init pissa starts from the leading part of the weights"),
        ("adapter.stack=[one=0.5]", "adapter.stack is folded into the weights"),
    ],
)
def test_what_reads_or_changes_the_weights_is_refused_before_anything_is_loaded(
    source: ModelSource, make_recipe: MakeRecipe, tmp_path: Path, settings: str, reason: str
) -> None:
    run = RunFolder.create("refused", root=tmp_path)
    with pytest.raises(RecipeError, match=f"train.base_dtype: nf4, but {reason}") as caught:
        train(make_recipe(settings, "train.base_dtype=nf4"), run=run, source=source, device="cpu")
    assert "bfloat16" in str(caught.value), "what would be right"
    assert not run.path.exists()
    check_base(make_recipe(settings))


def test_a_base_in_few_bits_is_not_compiled(make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="a base in nf4 is not compiled"):
        check_base(make_recipe("train.compile=true", "train.base_dtype=nf4"))


def test_a_missing_package_is_named_before_anything_is_loaded(
    source: ModelSource, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(RecipeError, match=r"base_dtype: int8 needs .* 'sa3lora\[quant\]'"):
        plan_training(make_recipe("train.base_dtype=int8"), source=source, device="cpu")


def test_injecting_refuses_the_same(source: ModelSource) -> None:
    denoiser = source.load_denoiser(quantised="int8")
    with pytest.raises(AdapterError, match="on a quantised base, dora-cols is trained against"):
        inject_adapter(denoiser, AdapterConfig(type="dora-cols", r=2))
    with pytest.raises(AdapterError, match="lora-xs acts along singular vectors of the stored"):
        inject_adapter(denoiser, AdapterConfig(type="lora-xs", r=2))


@pytest.mark.parametrize("name", ["nf4", "int8", "bfloat16", "float32"])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_the_counted_bytes_are_the_real_ones(
    source: ModelSource, name: str, compute: torch.dtype
) -> None:
    held = held_in(name)
    base = held.base if held.quantised is None else compute
    with torch.device("meta"):
        shapes = Denoiser(source.config)
    counted = frozen_bytes(shapes, Precision(base, compute, held.quantised))
    denoiser = source.load_denoiser(dtype=base, quantised=held.quantised)
    real = [*denoiser.parameters()]
    for module in denoiser.modules():
        if isinstance(module, QuantisedLinear):
            real += module.quantised.tensors
    assert counted.held == sum(tensor.numel() * tensor.itemsize for tensor in real)
    largest = max(layer.weight.numel() for layer in block_layers(shapes).values())
    assert counted.unpacking >= (largest * compute.itemsize if held.quantised else 0)


def test_the_plan_says_how_the_base_is_held_and_counts_it(
    source: ModelSource, make_recipe: MakeRecipe
) -> None:
    rows = plan_training(make_recipe("train.base_dtype=nf4"), source=source, device="cpu").rows
    assert "base nf4 in the blocks and float32 around them, products float32" in rows["model"]


def test_medium_with_clips_of_120_s_fits_8_gb_as_its_recipe_says() -> None:
    recipe = load_recipe("medium_style_8gb")
    assert recipe.train.base_dtype == "nf4"
    config = parse_config(released_config("medium-base"))
    fits = fits_of(config, AdapterConfig.from_section(recipe.adapter), optim=recipe.optim)
    found = {(fit.card_gb, fit.base_dtype): fit.num_frames or 0 for fit in fits}
    for card in (6, 8, 12, 16, 24):
        assert found[card, "float32"] <= found[card, "bfloat16"] or found[card, "bfloat16"] > 4096
    assert found[8, "nf4"] > recipe.data.frames_per_batch
    assert found[6, "nf4"] > found[6, "int8"] > found[6, "bfloat16"]
    magnitudes = fits_of(config, AdapterConfig(type="dora-rows", r=16), optim=recipe.optim)
    assert {fit.base_dtype for fit in magnitudes} == {"bfloat16", "float32"}


@pytest.mark.parametrize("adapter_type", ["lora", "rslora", "lora-xs"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_the_adapter_alone_and_resumes_bit_for_bit(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe, kind: str, adapter_type: str
) -> None:
    recipe = make_recipe(
        f"adapter.type={adapter_type}", f"train.base_dtype={kind}", "train.max_steps=3",
        "validate={every: 3, tuples: 4}", "checkpoint.every=2", "adapter.lora_dropout=0.1",
    )  # fmt: skip
    whole, result = train_whole_and_killed(recipe, root=tmp_path, source=source, step=3)
    assert result.validation is not None
    adapter = read_adapter(whole.adapter_path)
    assert adapter.metadata["sa3lora.dit_hash"] == source.dit_hash
    _assert_file_plays(recipe, source, whole, expected=result.validation.main.difference)


def _assert_file_plays(
    recipe: Recipe, source: ModelSource, run: RunFolder, *, expected: float
) -> None:
    """The file on the plain base does about what training saw on the quantised one."""
    with accelerated("cpu") as accelerator:
        setup = set_up(recipe, source=source, accelerator=accelerator)
    validator = Validator(recipe, data=setup.data, source=source, text=build_text(setup))
    denoiser = source.load_denoiser()
    bare = validator.run(denoiser, 3).main.adapter
    AdapterStack(denoiser).add(read_adapter(run.adapter_path), "a")
    played = validator.run(denoiser, 3).main.adapter - bare
    assert played == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_a_plain_model_with_the_same_weights(
    source: ModelSource, make_recipe: MakeRecipe, kind: QuantKind
) -> None:
    recipe = make_recipe(f"train.base_dtype={kind}", "train.checkpointing=0.5")
    with accelerated("cpu") as accelerator:
        setup = set_up(recipe, source=source, accelerator=accelerator)
        text = build_text(setup)
        held, plain = load_denoiser(setup), source.load_denoiser()
        weights = block_layers(source.load_denoiser(quantised=kind))
        for name, layer in block_layers(plain).items():
            layer.weight.data.copy_(weights[name].weight)
        inject_adapter(plain, setup.adapter, seed=recipe.train.seed)
        clips = setup.data.next_round()
        ours, theirs = (_gradients(setup, denoiser, clips, text) for denoiser in (held, plain))
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6)


def _gradients(
    setup: Setup, denoiser: Denoiser, clips: list[BatchPlan], text: TextEmbeddings
) -> dict[str, Tensor]:
    """Give the gradients of one batch for an adapter that is not fresh."""
    trained = dict(adapter_parameters(denoiser))
    for name, parameter in trained.items():
        if name.endswith("lora_B"):
            nn.init.constant_(parameter, 0.01)
    objective = FlowObjective(setup, denoiser=denoiser, text=text)
    for loss in objective.prepare([clips], step=1).losses():
        torch.autograd.backward(loss.total)
    return {name: p.grad for name, p in trained.items() if p.grad is not None}


def test_lora_xs_acts_along_the_vectors_of_the_stored_weights(
    source: ModelSource, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe("adapter.type=lora-xs", "train.base_dtype=nf4")
    with accelerated("cpu") as accelerator:
        denoiser = load_denoiser(set_up(recipe, source=source, accelerator=accelerator))
    stored = CheckpointWeights(source.weights_path)
    site = "model.transformer.layers.0.self_attn.to_qkv"
    left, right = svd_basis(stored(site), recipe.adapter.r)
    layer = denoiser.get_submodule(site)
    assert torch.equal(layer.get_parameter("lora_B.default.weight"), left)
    assert torch.equal(layer.get_parameter("lora_A.default.weight"), right.T)
    parts = layer.get_submodule("lora_parts.default")
    kept = [value for value in vars(parts).values() if isinstance(value, Tensor)]
    assert kept == [], "no weight in full"
