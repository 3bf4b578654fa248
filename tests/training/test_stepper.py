from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from sa3lora.adapters.files import read_adapter
from sa3lora.errors import DivergenceError
from sa3lora.latents.batching import BatchPlan
from sa3lora.models.source import ModelSource
from sa3lora.probe import StepLoss
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training import trainer
from sa3lora.training.distillation import make_objective
from sa3lora.training.flow_objective import PreparedStep, StepObjective
from sa3lora.training.loop import ResumableLoop
from sa3lora.training.processes import accelerated
from sa3lora.training.session import build_text, load_denoiser, make_loop, set_up
from sa3lora.training.stepper import Stepper
from sa3lora.training.teacher import make_pairs
from sa3lora.training.trainer import train
from tests.training.waits import Waits

MakeRecipe = Callable[..., Recipe]
Spoil = Callable[[StepLoss], StepLoss]
Open = Callable[..., AbstractContextManager[tuple[Stepper, ResumableLoop, Waits]]]

_PADDED = ["data.packing=false", "data.frames_per_batch=120"]
_WATCHED = {
    "padded": [*_PADDED, "train.grad_accum=2"],
    "packed": ["data.packing=true", "train.grad_accum=2"],
    "prior and weights": ["objective.prior_weight=1", "objective.min_snr_gamma=5"],
    "dropout of prompts": ["objective.prompt_dropout=1", "objective.coupling=exact"],
    "normalised": ["objective.normalisation=sample", "objective.inpaint=[0.3, 0.3, 0.2, 0.2]"],
    "rows": ["adapter.type=dora-rows", "train.checkpointing=lean"],
    "columns": ["adapter.type=dora-cols", "train.checkpointing=true"],
    "both": ["adapter.type=bora", "adapter.lora_dropout=0.2"],
    "both, fixed bases": ["adapter.type=bora-xs"],
    "fixed bases": ["adapter.type=lora-xs", "optim.ema_decay=0.9"],
    "kronecker": ["adapter.type=lokr"],
    "leading part": ["adapter.init=pissa"],
    "muon": ["optim.name=muon", "optim.schedule=cosine"],
    "8 bits": ["optim.name=adamw8bit", "adapter.r=64"],
    "bfloat16": ["train={dtype: bfloat16, base_dtype: bfloat16}"],
    "teacher": ["distill.seeds=1", "distill.teacher_steps=1"],
}


class _Spoiled:
    """An objective whose losses something happens to."""

    def __init__(self, objective: StepObjective, spoil: Spoil) -> None:
        self._objective, self._spoil = objective, spoil

    def prepare(
        self, rounds: Sequence[Sequence[BatchPlan]], *, step: int, attempt: int = 0
    ) -> PreparedStep:
        prepared = self._objective.prepare(rounds, step=step, attempt=attempt)
        return replace(prepared, losses=lambda: map(self._spoil, prepared.losses()))


@pytest.fixture
def opened(tmp_path: Path, source: ModelSource, small_model: Path, make_recipe: MakeRecipe) -> Open:
    """Give a stepper of a real, small run, and the waits of a GPU that holds its model."""

    @contextmanager
    def open_stepper(
        *overrides: str, lag: int = 1, ahead: bool = True, spoil: Spoil | None = None
    ) -> Iterator[tuple[Stepper, ResumableLoop, Waits]]:
        keys = list(overrides)
        if any(key.startswith("distill") for key in keys):
            run = RunFolder.create("teacher", root=tmp_path)
            short = make_recipe("train.max_steps=1", "validate.every=0")
            train(short, run=run, source=source, device="cpu")
            keys += [f"distill.teacher={run.adapter_path}", f"distill.base={small_model}"]
        with accelerated("cpu") as accelerator, torch.random.fork_rng():
            setup = set_up(make_recipe(*keys), source=source, accelerator=accelerator)
            text, pairs = build_text(setup), tmp_path / "pairs"
            if setup.recipe.distill.teacher is not None:
                make_pairs(setup, text, pairs, tell=lambda _: None)
            denoiser = load_denoiser(setup)
            objective = make_objective(setup, denoiser=denoiser, text=text, teacher_folder=pairs)
            if spoil is not None:
                objective = _Spoiled(objective, spoil)
            loop = make_loop(setup, denoiser, folder=tmp_path / "checkpoints")
            waits = Waits([*denoiser.parameters(), *denoiser.buffers()])
            with Stepper(setup, objective=objective, loop=loop, lag=lag, ahead=ahead) as stepper:
                yield stepper, loop, waits

    return open_stepper


def _watched(stepper: Stepper, waits: Waits) -> set[str]:
    """Name the waits of the second step: the first one fills caches that are kept for good."""
    stepper.take()
    with waits.watching():
        stepper.take()
    return set(waits.found)


@pytest.mark.parametrize("path", list(_WATCHED))
def test_no_step_waits_for_the_device(opened: Open, path: str) -> None:
    with opened(*_WATCHED[path], lag=2) as (stepper, _, waits):
        assert _watched(stepper, waits) == set()


def test_prodigy_alone_waits_inside_its_own_step(opened: Open) -> None:
    pytest.importorskip("prodigyopt")
    with opened("optim.name=prodigy", lag=2) as (stepper, loop, waits):
        found = _watched(stepper, waits)
        reads = [what for what in waits.found if what.startswith("_local_scalar_dense")]
    # It weighs the whole adapter on the host before it moves anything, in code that is not ours.
    assert len(reads) == 2 * len(loop.parameters), "as the plan says"
    assert {what.partition(" ")[0] for what in found} <= {"item", "_local_scalar_dense"}
    assert {what.rpartition(" ")[2] for what in found} == {"loop.py:_step"}


def _reads_a_number(loss: StepLoss) -> StepLoss:
    return replace(loss, total=loss.total * float(loss.total.detach() > -1))


def _reads_a_list(loss: StepLoss) -> StepLoss:
    return replace(loss, total=loss.total * len(loss.per_item.tolist()))


def _picks_by_value(loss: StepLoss) -> StepLoss:
    return replace(loss, total=loss.total + loss.per_item[loss.per_item > 0].mean())


def _copies_to_the_host(loss: StepLoss) -> StepLoss:
    return replace(loss, total=loss.total + loss.per_item.cpu().mean())


def _copies_numbers_there(loss: StepLoss) -> StepLoss:
    return replace(loss, total=loss.total * torch.tensor(2.0, device=loss.total.device))


def _copies_without_upload(loss: StepLoss) -> StepLoss:
    return replace(loss, total=loss.total * torch.ones(1).to(loss.total.device)[0])


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_reads_a_number, {"__float__", "_local_scalar_dense"}),
        (_reads_a_list, {"tolist"}),
        (_picks_by_value, {"index", "nonzero"}),
        (_copies_to_the_host, {"cpu"}),
        (_copies_numbers_there, {"tensor"}),
        (_copies_without_upload, {"a"}),
    ],
)
def test_a_wait_in_a_step_is_found(opened: Open, spoil: Spoil, expected: set[str]) -> None:
    with opened(spoil=spoil, lag=2) as (stepper, _, waits):
        found = _watched(stepper, waits)
    kinds = {what.partition(" ")[0] for what in found}
    assert kinds
    assert kinds <= expected


def _bad_from_the_second() -> Spoil:
    taken = []

    def spoil(loss: StepLoss) -> StepLoss:
        taken.append(loss.num_frames)
        return loss if len(taken) < 2 else replace(loss, total=loss.total * torch.nan)

    return spoil


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_a_loss_that_is_no_number_is_told_late_and_undone_whole(opened: Open, lag: int) -> None:
    with opened(spoil=_bad_from_the_second(), lag=lag) as (stepper, loop, _):
        before = {name: p.detach().clone() for name, p in loop.parameters.items()}
        told = []
        for _ in range(1 + lag):
            stepper.take()
            told += [report.step for report in stepper.finished()]
        assert told == [1]
        stepper.take()
        with pytest.raises(DivergenceError, match="step 2: the loss is no number") as raised:
            list(stepper.finished())
        assert loop.step == 2 + lag
        assert (raised.value.step, len(raised.value.clips) > 0) == (2, True)
        stepper.forget()
        loop.reset()
        assert list(stepper.finished(all_of_them=True)) == []
        assert all(torch.equal(p.detach(), before[name]) for name, p in loop.parameters.items())


def _logged(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run.path))
    events.Reload()
    timed = ("speed/", "memory/")
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith(timed)
    }


def _tensors(run: RunFolder) -> dict[str, Tensor]:
    stored = read_adapter(run.adapter_path).tensors
    return {f"{site}.{name}": t for site, group in stored.items() for name, t in group.items()}


@pytest.mark.parametrize("how", [{"lag": 1, "ahead": True}, {"ahead": True}], ids=str)
def test_a_device_that_is_behind_and_steps_made_ready_early_change_no_bit(
    tmp_path: Path,
    source: ModelSource,
    make_recipe: MakeRecipe,
    make_latents: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, int],
) -> None:
    data = make_latents(tmp_path / "data", broken_clip="0100")  # so that it goes back, too
    recipe = make_recipe(
        f"data.root={data}", "data.frames_per_batch=1", "checkpoint={every: 4, keep: 9}",
        "train.max_steps=5", "validate.every=0",
    )  # fmt: skip
    runs = [RunFolder.create(name, root=tmp_path) for name in ("plain", "other")]
    train(recipe, run=runs[0], source=source, device="cpu")
    monkeypatch.setattr(trainer, "Stepper", partial(Stepper, **how))
    train(recipe, run=runs[1], source=source, device="cpu")
    one, two = (_tensors(run) for run in runs)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert runs[0].manifest()["setbacks"] == runs[1].manifest()["setbacks"]
    assert len(runs[0].manifest()["setbacks"]) == 1
    assert _logged(runs[0]) == _logged(runs[1])
    assert [step for step, _ in _logged(runs[1])["train/loss"]] == [1, 2, 3, 4, 5]
