"""Going on from an adapter of any form, and training on top of a frozen stack."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sa3lora.adapters.bases import HASH_KEY
from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.deltas import svd_basis
from sa3lora.adapters.files import AdapterFile, flat_tensors, read_adapter, write_adapter
from sa3lora.adapters.inject import export_adapter
from sa3lora.adapters.peft_write import write_diffusers_folder, write_peft_folder
from sa3lora.adapters.sites import site_shapes
from sa3lora.adapters.stacked import stack_of
from sa3lora.adapters.weights import CheckpointWeights, hash_weights, kernels_of
from sa3lora.errors import AdapterMismatchError, RecipeError, RunError
from sa3lora.models.source import ModelSource
from sa3lora.pipeline import SA3Pipeline
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.processes import accelerated
from sa3lora.training.session import build_text, load_denoiser, set_up
from sa3lora.training.trainer import train
from sa3lora.training.validation import Validator
from tests.training.killing import train_whole_and_killed

MakeRecipe = Callable[..., Recipe]
_FEW = ("train.max_steps=3", "validate={every: 3, tuples: 4}", "checkpoint.every=2")


@pytest.fixture(scope="session")
def adapters(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random adapters of two types on every layer, strong enough to be heard."""
    folder = tmp_path_factory.mktemp("adapters")
    generator = torch.Generator().manual_seed(5)
    denoiser = source.load_denoiser()
    tensors: dict[str, dict[str, Tensor]] = {}
    for site, (fan_out, fan_in) in site_shapes(denoiser).items():
        tensors[site] = {
            "lora_A": torch.randn(4, fan_in, generator=generator) / fan_in**0.5,
            "lora_B": torch.randn(fan_out, 4, generator=generator) / 20,
        }
    paths = {name: folder / f"{name}.safetensors" for name in ("lora", "dora-rows")}
    write_adapter(paths["lora"], AdapterFile(AdapterConfig("lora", r=4), tensors))
    for site, group in tensors.items():
        norms = denoiser.get_submodule(site).weight.detach().flatten(1).norm(dim=1)
        group["magnitude"] = norms * 1.1
    write_adapter(paths["dora-rows"], AdapterFile(AdapterConfig("dora-rows", r=4), tensors))
    return paths


def _started(recipe: Recipe, source: ModelSource) -> dict[str, dict[str, Tensor]]:
    with accelerated("cpu") as accelerator:
        return export_adapter(load_denoiser(set_up(recipe, source=source, accelerator=accelerator)))


def _assert_equal(
    one: dict[str, dict[str, Tensor]], two: dict[str, dict[str, Tensor]], *, exact: bool = True
) -> None:
    assert one.keys() == two.keys()
    for site in one:
        for name, tensor in one[site].items():
            if exact:
                assert torch.equal(two[site][name], tensor)
            else:
                torch.testing.assert_close(two[site][name], tensor)


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("lora", "ckpt"), ("lora", "peft"), ("lora", "diffusers"), ("lora", "kohya"),
        ("dora-rows", "ckpt"), ("dora-rows", "peft"), ("dora-rows", "diffusers"),
    ],
)  # fmt: skip
def test_training_starts_from_any_form_that_can_be_read(
    tmp_path: Path,
    source: ModelSource,
    make_recipe: MakeRecipe,
    adapters: dict[str, Path],
    kind: str,
    form: str,
) -> None:
    adapter = read_adapter(adapters[kind])
    kernels = kernels_of(adapter.sites, CheckpointWeights(source.weights_path))
    path = tmp_path / "start"
    if form == "peft":
        write_peft_folder(path, adapter, kernels=kernels)
    elif form == "diffusers":
        write_diffusers_folder(path, adapter, kernels=kernels)
    elif form == "kohya":
        path = _write_kohya(tmp_path / "kohya.safetensors", adapter)
    else:
        path = tmp_path / "start.ckpt"
        config = {"rank": 4, "alpha": 4, "adapter_type": kind}
        torch.save({"state_dict": flat_tensors(adapter), "lora_config": config}, path)
    recipe = make_recipe(f"adapter={{type: {kind}, r: 4, from: {path}}}")
    _assert_equal(_started(recipe, source), {s: dict(g) for s, g in adapter.tensors.items()})


def _write_kohya(path: Path, adapter: AdapterFile) -> Path:
    tensors = {}
    for site, group in adapter.tensors.items():
        name = f"lora_unet_{site.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = group["lora_A"]
        tensors[f"{name}.lora_up.weight"] = group["lora_B"]
        tensors[f"{name}.alpha"] = torch.tensor(4.0)
    save_file(tensors, path)
    return path


def test_training_starts_from_a_run_and_from_a_checkpoint(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> None:
    run = RunFolder.create("first", root=tmp_path)
    train(make_recipe(*_FEW), run=run, source=source, device="cpu")
    for path, file in (
        (run.path, run.adapter_path),
        (run.checkpoints / "step-00000002", run.checkpoints / "step-00000002/adapter.safetensors"),
    ):
        found = _started(make_recipe(f"adapter.from={path}"), source)
        _assert_equal(found, {s: dict(g) for s, g in read_adapter(file).tensors.items()})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("type: lora, r: 4", r"is dora-rows with r 4 .* set adapter\.type=dora-rows adapter\.r=4"),
        ("type: dora-rows, r: 2", r"wants dora-rows with r 2 .* sa3lora resize"),
        ("type: dora-rows, r: 4, targets: mlp", r"has other layers than the recipe\n.*: only in /"),
    ],
)
def test_an_adapter_that_does_not_fit_the_recipe_says_what_to_set(
    source: ModelSource,
    make_recipe: MakeRecipe,
    adapters: dict[str, Path],
    section: str,
    message: str,
) -> None:
    recipe = make_recipe(f"adapter={{{section}, from: {adapters['dora-rows']}}}")
    with pytest.raises(RecipeError, match=message), accelerated("cpu") as accelerator:
        set_up(recipe, source=source, accelerator=accelerator)


@pytest.mark.parametrize("kind", ["lora", "dora-rows", "dora-cols-xs", "bora"])
def test_what_is_trained_on_a_stack_plays_on_it_as_it_was_validated(
    tmp_path: Path,
    source: ModelSource,
    make_recipe: MakeRecipe,
    adapters: dict[str, Path],
    kind: str,
) -> None:
    members = {"lora": 0.6, "dora-rows": -0.4}
    stack = ", ".join(f"{adapters[name]}={strength}" for name, strength in members.items())
    recipe = make_recipe(*_FEW, f"adapter={{type: {kind}, r: 4, stack: [{stack}]}}")
    whole, result = train_whole_and_killed(recipe, root=tmp_path, source=source, step=3)
    assert result.validation is not None
    trained = read_adapter(whole.adapter_path)
    assert {(one.content_hash, one.strength) for one in stack_of(trained)} == {
        (read_adapter(adapters[name]).content_hash, strength) for name, strength in members.items()
    }
    assert str(adapters["lora"].parent) not in trained.metadata["sa3lora.recipe"]
    with accelerated("cpu") as accelerator:
        setup = set_up(recipe, source=source, accelerator=accelerator)
    validator = Validator(recipe, data=setup.data, source=source, text=build_text(setup))
    pipeline = SA3Pipeline(source)
    bare = validator.run(pipeline.denoiser, 3).main.adapter
    for name, strength in members.items():
        pipeline.load_adapter(adapters[name], strength=strength)
    below = validator.run(pipeline.denoiser, 3).main.adapter
    pipeline.load_adapter(whole.adapter_path, adapter_name="new")
    played = validator.run(pipeline.denoiser, 3).main.adapter
    assert below != pytest.approx(bare, rel=1e-4)
    assert below == pytest.approx(result.validation.main.base, rel=1e-6)
    assert played == pytest.approx(result.validation.main.adapter, rel=1e-5)
    assert played != pytest.approx(below, rel=1e-5)


def test_magnitudes_train_on_a_stack_in_a_coarse_base(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe, adapters: dict[str, Path]
) -> None:
    run = RunFolder.create("coarse", root=tmp_path)
    stack = f"stack: [{adapters['dora-rows']}=0.5]"
    recipe = make_recipe(
        *_FEW, f"adapter={{type: bora, r: 4, {stack}}}",
        "train={max_steps: 3, base_dtype: bfloat16, dtype: bfloat16}",
    )  # fmt: skip
    result = train(recipe, run=run, source=source, device="cpu")
    assert result.validation is not None
    assert result.validation.main.difference < 0


def test_another_stack_is_another_run(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe, adapters: dict[str, Path]
) -> None:
    run = RunFolder.create("run", root=tmp_path)
    short = ("train.max_steps=1", "validate.every=0")
    recipe = make_recipe(*short, f"adapter.stack=[{adapters['lora']}=0.5]")
    train(recipe, run=run, source=source, device="cpu")
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(adapters["lora"].read_bytes())
    again = make_recipe(*short, f"adapter.stack=[{moved}=0.5]")
    assert train(again, run=run, source=source, device="cpu", resume=True).finished
    other = make_recipe(*short, f"adapter.stack=[{adapters['lora']}=0.6]")
    with pytest.raises(RunError, match=r"adapter\.stack: was .*=0\.5.*, is .*=0\.6"):
        train(other, run=run, source=source, device="cpu", resume=True)


def test_going_on_without_the_stack_it_was_trained_on_is_said(
    tmp_path: Path,
    source: ModelSource,
    make_recipe: MakeRecipe,
    adapters: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = RunFolder.create("run", root=tmp_path)
    stack = f"adapter.stack=[{adapters['lora']}=0.5]"
    train(
        make_recipe("train.max_steps=1", "validate.every=0", stack),
        run=run, source=source, device="cpu",
    )  # fmt: skip
    _started(make_recipe(f"adapter.from={run.path}", stack), source)
    assert "was trained on top of" not in caplog.text
    _started(make_recipe(f"adapter.from={run.path}"), source)
    assert "was trained on top of lora at strength 0.5" in caplog.text


def test_on_a_coarse_base_the_directions_are_those_of_the_stored_weights(
    source: ModelSource, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(
        "adapter={type: dora-rows-xs, r: 4}", "train={base_dtype: bfloat16, dtype: bfloat16}"
    )
    with accelerated("cpu") as accelerator:
        denoiser = load_denoiser(set_up(recipe, source=source, accelerator=accelerator))
    weights = CheckpointWeights(source.weights_path)
    site = "model.transformer.project_in"
    left, right = svd_basis(weights(site), 4)
    layer = denoiser.get_submodule(site)
    assert torch.equal(layer.get_parameter("lora_A.default.weight"), right.T)
    assert torch.equal(layer.get_parameter("lora_B.default.weight"), left)


def test_an_xs_run_pins_its_bases_and_strangers_are_refused(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> None:
    run = RunFolder.create("xs", root=tmp_path)
    recipe = make_recipe("adapter={type: lora-xs, r: 4}", *_FEW)
    train(recipe, run=run, source=source, device="cpu")
    adapter = read_adapter(run.adapter_path)
    weights = CheckpointWeights(source.weights_path)
    assert adapter.metadata[HASH_KEY] == hash_weights(adapter.sites, weights)

    pipeline = SA3Pipeline(source)
    pipeline.load_adapter(run.adapter_path, adapter_name="its own")
    named_by_no_base = {HASH_KEY: "0" * 64}
    stranger = dataclasses.replace(adapter, metadata=named_by_no_base)
    write_adapter(tmp_path / "stranger.safetensors", stranger)
    with pytest.raises(AdapterMismatchError, match=r"lora-xs and was made for other weights"):
        pipeline.load_adapter(tmp_path / "stranger.safetensors")
    assert pipeline.stack.names == ["its own"]
    pipeline.load_adapter(tmp_path / "stranger.safetensors", allow_other_base=True)
    below = make_recipe(f"adapter.stack=[{tmp_path / 'stranger.safetensors'}=0.5]")
    with pytest.raises(AdapterMismatchError, match=r"made for other weights"):
        _started(below, source)
