from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sa3lora.adapters.files import read_adapter
from sa3lora.errors import DivergenceError, RunError
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe, load_recipe
from sa3lora.runs import RunFolder
from sa3lora.training.events import TrainEvent
from sa3lora.training.trainer import train

MakeRecipe = Callable[..., Recipe]
# One clip a batch, six clips an epoch: the broken one comes once in the first five steps, and once
# more in the second epoch.
_SETTINGS = ["data.frames_per_batch=1", "validate.every=0", "checkpoint={every: 2, keep: 9}"]


class _Killed(BaseException):
    """Stands for a process that is gone: nothing of ours catches it."""


def _same(first: RunFolder, second: RunFolder) -> bool:
    one, two = (read_adapter(run.adapter_path).tensors for run in (first, second))
    return all(torch.equal(one[site][name], two[site][name]) for site in one for name in one[site])


@pytest.fixture
def broken_recipe(
    tmp_path: Path, make_recipe: MakeRecipe, make_latents: Callable[..., Path]
) -> MakeRecipe:
    """Recipes over clips of which one is no number."""
    data = make_latents(tmp_path / "broken", broken_clip="0100")
    return lambda *overrides: make_recipe(f"data.root={data}", *_SETTINGS, *overrides)


def _rates(run: RunFolder) -> dict[int, float]:
    events = EventAccumulator(str(run.path))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("optim/lr")}


def test_a_loss_that_is_no_number_costs_the_steps_since_the_last_checkpoint_and_half_the_rate(
    tmp_path: Path, source: ModelSource, broken_recipe: MakeRecipe
) -> None:
    run = RunFolder.create("run", root=tmp_path)
    told: list[TrainEvent] = []
    recipe = broken_recipe("train.max_steps=5")
    train(recipe, run=run, source=source, device="cpu", progress=told.append)
    (setback,) = run.manifest()["setbacks"]
    assert setback["clips"] == ["0100"]
    assert setback["back_to"] == (setback["step"] - 1) // 2 * 2
    assert any("from clips 0100. Going on after step" in event.text for event in told)
    rates = _rates(run)
    halved = {step for step, rate in rates.items() if rate == pytest.approx(0.005)}
    assert halved == set(range(setback["back_to"] + 1, 6))
    assert run.manifest()["status"] == "finished"


@pytest.mark.parametrize("killed_at", [1, 3, 4, 5])
def test_a_run_killed_after_it_stepped_back_ends_in_the_same_adapter(
    tmp_path: Path, source: ModelSource, broken_recipe: MakeRecipe, killed_at: int
) -> None:
    recipe = broken_recipe("train.max_steps=5")
    whole, run = (RunFolder.create(name, root=tmp_path) for name in ("whole", "run"))
    train(recipe, run=whole, source=source, device="cpu")
    back = False

    def kill(event: TrainEvent) -> None:
        nonlocal back
        back = back or "Going on after" in event.text
        if back and event.kind == "step" and event.step >= killed_at:
            raise _Killed

    with pytest.raises(_Killed):
        train(recipe, run=run, source=source, device="cpu", progress=kill)
    train(recipe, run=run, source=source, device="cpu", resume=True)
    assert _same(run, whole)
    assert run.manifest()["setbacks"] == whole.manifest()["setbacks"]


def test_the_second_time_the_run_ends_and_a_lower_rate_can_go_on(
    tmp_path: Path, source: ModelSource, broken_recipe: MakeRecipe
) -> None:
    run = RunFolder.create("run", root=tmp_path)
    recipe = broken_recipe("train.max_steps=12")
    with pytest.raises(DivergenceError, match=r"from clips 0100\.\nStep \d failed too"):
        train(recipe, run=run, source=source, device="cpu")
    assert run.manifest()["status"] == "diverged"
    saved = sorted(path.name for path in run.checkpoints.iterdir())
    with pytest.raises(DivergenceError, match="untouched"):
        train(recipe, run=run, source=source, device="cpu", resume=True)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == saved
    lower = broken_recipe("train.max_steps=12", "optim.lr=0.001")
    train(lower, run=run, source=source, device="cpu", resume=True, allow_change=["optim.lr"])
    assert run.manifest()["status"] == "finished"
    assert len(run.manifest()["setbacks"]) == 2


def test_a_run_goes_on_with_a_change_that_is_allowed_and_says_so(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> None:
    run = RunFolder.create("run", root=tmp_path)
    train(make_recipe("train.max_steps=2"), run=run, source=source, device="cpu")
    changed = make_recipe("train.max_steps=4", "optim.lr=0.002", "data.frames_per_batch=60")
    keys = ["optim.lr", "data.frames_per_batch"]
    with pytest.raises(RunError, match=r"--allow-change data\.frames_per_batch"):
        train(changed, run=run, source=source, device="cpu", resume=True, allow_change=keys[:1])
    told: list[TrainEvent] = []
    train(
        changed,
        run=run,
        source=source,
        device="cpu",
        resume=True,
        allow_change=keys,
        progress=told.append,
    )
    (entry,) = run.manifest()["changes"]
    assert entry["step"] == 2
    assert entry["keys"]["optim.lr"] == {"was": 0.01, "is": 0.002}
    assert _rates(run)[4] == pytest.approx(0.002)
    assert any("begin with an epoch" in event.text for event in told)
    assert load_recipe(run.recipe_path).optim.lr == 0.002
    # From now on the run is what it became.
    longer = make_recipe("train.max_steps=5", "optim.lr=0.002", "data.frames_per_batch=60")
    train(longer, run=run, source=source, device="cpu", resume=True)
