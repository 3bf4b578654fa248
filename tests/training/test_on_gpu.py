"""What a run promises on a GPU; none of it was run yet, for want of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.distillation import make_objective
from sa3lora.training.events import TrainEvent
from sa3lora.training.processes import accelerated
from sa3lora.training.session import build_text, load_denoiser, make_loop, set_up
from sa3lora.training.stepper import Stepper
from sa3lora.training.trainer import train

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
MakeRecipe = Callable[..., Recipe]
_FLOAT32 = "train={max_steps: 4, dtype: float32, base_dtype: float32}"


@pytest.fixture
def losses(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> Callable[..., list[float]]:
    def run(name: str, *overrides: str, device: str = DEVICE) -> list[float]:
        found: list[float] = []

        def note(event: TrainEvent) -> None:
            if event.loss is not None:
                found.append(event.loss)

        folder = RunFolder.create(name, root=tmp_path)
        recipe = make_recipe(_FLOAT32, *overrides)
        train(recipe, run=folder, source=source, device=device, progress=note)
        return found

    return run


@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize("adapter", ["lora", "dora-rows", "bora-xs", "lokr"])
def test_losses_are_those_of_a_cpu(
    losses: Callable[..., list[float]], adapter: str, packing: str
) -> None:
    keys = (f"adapter.type={adapter}", f"data.packing={packing}")
    assert losses("gpu", *keys) == pytest.approx(losses("cpu", *keys, device="cpu"), rel=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        "train.checkpointing=lean",
        "train.checkpointing=true",
        "train.offload=true",
        "train.compile=true",
    ],
)
def test_what_saves_time_or_memory_changes_no_loss(
    losses: Callable[..., list[float]], change: str
) -> None:
    plain = losses("plain", "data.packing=false", "train.checkpointing=fast")
    assert losses("changed", "data.packing=false", change) == pytest.approx(plain, rel=1e-3)


@contextmanager
def _waits_are_errors() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("packing", ["true", "false"])
def test_no_step_waits_for_the_device(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe, packing: str
) -> None:
    with accelerated(DEVICE) as accelerator, torch.random.fork_rng():
        recipe = make_recipe(f"data.packing={packing}", "optim.ema_decay=0.9")
        setup = set_up(recipe, source=source, accelerator=accelerator)
        text, denoiser = build_text(setup), load_denoiser(setup)
        objective = make_objective(setup, denoiser=denoiser, text=text, teacher_folder=tmp_path)
        loop = make_loop(setup, denoiser, folder=tmp_path / "checkpoints")
        with Stepper(setup, objective=objective, loop=loop, lag=3, ahead=False) as stepper:
            stepper.take()
            with _waits_are_errors():
                stepper.take()
            assert [report.step for report in stepper.finished(all_of_them=True)] == [1, 2]
