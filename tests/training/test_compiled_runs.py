"""Compiled blocks train what they train uncompiled. Slow: each case compiles for its own type."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sa3lora.adapters.files import read_adapter
from sa3lora.errors import RecipeError
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.events import TrainEvent
from sa3lora.training.trainer import plan_training, train

MakeRecipe = Callable[..., Recipe]
_SHORT = ["train.max_steps=4", "validate.every=2", "data.packing=false"]
_CASES = {
    "plain": ["adapter.lora_dropout=0.2"],
    "rows, lean": ["adapter.type=dora-rows", "train.checkpointing=lean"],
    "both, recomputed": ["adapter.type=bora", "train.checkpointing=true"],
    "fixed bases": ["adapter.type=lora-xs", "objective.prior_weight=0.5"],
    "kronecker": ["adapter.type=lokr"],
    "leading part": ["adapter.init=pissa"],
}


def _needs_compiler() -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("compiles, so it needs g++ or clang")


def _losses(recipe: Recipe, run: RunFolder, source: ModelSource) -> list[float]:
    told: list[TrainEvent] = []
    train(recipe, run=run, source=source, device="cpu", progress=told.append)
    return [event.loss for event in told if event.loss is not None]


def _tensors(run: RunFolder) -> list[Tensor]:
    stored = read_adapter(run.path / "adapter.safetensors").tensors
    return [tensor for site in sorted(stored) for tensor in stored[site].values()]


@pytest.mark.slow
@pytest.mark.parametrize("case", list(_CASES))
def test_compiled_blocks_have_the_losses_of_uncompiled_ones(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe, case: str
) -> None:
    _needs_compiler()
    keys = [*_SHORT, *_CASES[case]]
    plain, compiled = (RunFolder.create(name, root=tmp_path) for name in ("plain", "compiled"))
    expected = _losses(make_recipe(*keys), plain, source)
    torch._dynamo.utils.counters.clear()
    found = _losses(make_recipe(*keys, "train.compile=true"), compiled, source)
    assert found == pytest.approx(expected, rel=1e-5)
    counts = torch._dynamo.utils.counters
    assert counts["frames"]["ok"] > 0
    assert not counts["graph_break"]
    # grown from one clip to several, and padding that comes and goes: no more than these
    assert counts["stats"]["unique_graphs"] <= 8


@pytest.mark.slow
def test_a_run_is_compiled_however_many_were_before_it(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> None:
    _needs_compiler()
    # one kind of input in all of a run, and no more than one allowed: another run must not count
    keys = [
        "train.max_steps=1", "validate.every=0", "data.packing=false", "train.compile=true",
        "objective.silence_s=0", "data.frames_per_batch=1",
    ]  # fmt: skip
    counts = torch._dynamo.utils.counters
    with torch._dynamo.config.patch(recompile_limit=1):
        for name in ("lora", "lora-xs"):
            counts.clear()
            run = RunFolder.create(name, root=tmp_path)
            _losses(make_recipe(*keys, f"adapter.type={name}"), run, source)
            assert counts["frames"]["ok"] == counts["frames"]["total"] == 1


@pytest.mark.slow
def test_a_killed_compiled_run_ends_in_the_same_adapter(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> None:
    _needs_compiler()

    class Killed(BaseException):
        """Stands for a process that is gone: nothing of ours catches it."""

    def kill(event: TrainEvent) -> None:
        if event.kind == "step" and event.step == 3:
            raise Killed

    recipe = make_recipe(*_SHORT, "train.compile=true")
    whole, run = (RunFolder.create(name, root=tmp_path) for name in ("whole", "killed"))
    train(recipe, run=whole, source=source, device="cpu")
    with pytest.raises(Killed):
        train(recipe, run=run, source=source, device="cpu", progress=kill)
    train(recipe, run=run, source=source, device="cpu", resume=True)
    pairs = zip(_tensors(whole), _tensors(run), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_packed_batches_are_not_compiled(source: ModelSource, make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"Set data.packing=auto, which pads them"):
        plan_training(
            make_recipe("train.compile=true", "data.packing=true"), source=source, device="cpu"
        )
