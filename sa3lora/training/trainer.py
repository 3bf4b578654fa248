"""Training one adapter from a recipe, from the plan to the finished file."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch

from sa3lora.adapters.inject import import_adapter_state
from sa3lora.errors import DivergenceError
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.checkpoint import checkpoint_steps
from sa3lora.training.data import TextEmbeddings
from sa3lora.training.distillation import make_objective
from sa3lora.training.events import EventKind, Progress, TrainEvent, no_progress
from sa3lora.training.hparams import final_scores, flat_settings
from sa3lora.training.identity import check_changeable
from sa3lora.training.loop import ResumableLoop
from sa3lora.training.observer import Observer
from sa3lora.training.plan import Plan
from sa3lora.training.processes import accelerated, is_main_process
from sa3lora.training.result import RunRecord, TrainResult, finished_path, write_result
from sa3lora.training.resumption import Resumption
from sa3lora.training.rng import undisturbed_rng
from sa3lora.training.selection import Chosen
from sa3lora.training.session import Setup, build_text, load_denoiser, make_loop, set_up
from sa3lora.training.signals import StopRequest, stop_on_signal
from sa3lora.training.stepper import Stepper
from sa3lora.training.teacher import TEACHER_FOLDER, make_pairs
from sa3lora.training.tracking import Tracker

logger = logging.getLogger(__name__)


def plan_training(recipe: Recipe, *, source: ModelSource, device: str | None = None) -> Plan:
    """Work out what `train` would do, without loading weights or writing anything.

    Args:
        recipe: The run.
        source: The base model.
        device: `cpu`, `cuda` or `mps`; None takes the best there is.
    """
    with accelerated(device) as accelerator:
        return set_up(recipe, source=source, accelerator=accelerator).plan


def train(
    recipe: Recipe,
    *,
    run: RunFolder,
    source: ModelSource,
    resume: bool = False,
    allow_change: Sequence[str] = (),
    device: str | None = None,
    progress: Progress = no_progress,
) -> TrainResult:
    """Train one adapter, or go on with a run that was interrupted.

    On a CPU an interrupted and resumed run ends in the same adapter, bit for bit. Global random
    states are afterwards what they were before.

    Args:
        recipe: The run.
        run: Its folder; for a new run it is empty and is removed if nothing could be trained.
        source: The base model.
        resume: Go on from the newest whole checkpoint in the folder.
        allow_change: Keys of the recipe, or `dataset`, that may differ from what the run to resume
            was started with; the manifest records what did.
        device: `cpu`, `cuda` or `mps`; None takes the best there is.
        progress: Told of every step and of what else happens.

    Raises:
        RecipeError: If the recipe asks for what cannot be.
        RunError: If a run to resume was started otherwise.
        DivergenceError: If the loss is no number for the second time.
        UsageError: If `allow_change` names what is no key or cannot be changed.
    """
    check_changeable(allow_change)
    begun = False
    try:
        with accelerated(device) as accelerator, undisturbed_rng():
            setup = set_up(recipe, source=source, accelerator=accelerator)
            trainer = _Trainer(
                setup, run, resume=resume, allow_change=allow_change, progress=progress
            )
            begun = True
            return trainer.run()
    finally:
        made_nothing = not begun and not (run.path / TEACHER_FOLDER).is_dir()
        if made_nothing and not resume and is_main_process():
            shutil.rmtree(run.path, ignore_errors=True)


class _Trainer:
    """The parts of a run that is ready for its next step."""

    def __init__(
        self,
        setup: Setup,
        run: RunFolder,
        *,
        resume: bool,
        allow_change: Sequence[str],
        progress: Progress,
    ) -> None:
        self._setup = setup
        self._recipe = setup.recipe
        self._folder = run
        self._progress = progress
        torch.manual_seed(setup.recipe.train.seed)  # of the adapter's dropout
        self._resumption = Resumption(
            setup, run, resume=resume, allow_change=allow_change, tell=self._tell
        )
        self._text: TextEmbeddings = build_text(setup)
        self._record = self._resumption.record or self._start()
        teacher_folder = run.path / TEACHER_FOLDER
        if setup.recipe.distill.teacher is not None:
            make_pairs(setup, self._text, teacher_folder, tell=partial(self._note, 0))
        self._denoiser: Denoiser = load_denoiser(setup)
        self._loop: ResumableLoop = make_loop(setup, self._denoiser, folder=run.checkpoints)
        objective = make_objective(
            setup, denoiser=self._denoiser, text=self._text, teacher_folder=teacher_folder
        )
        self._stepper = Stepper(setup, objective=objective, loop=self._loop)
        self._observer = Observer(
            setup,
            denoiser=self._denoiser,
            text=self._text,
            run=run,
            record=self._record,
            tell=self._tell,
            averaged=self._loop.averaged,
        )
        if resume:
            known = self._resumption.restore(self._loop, self._record)
            self._observer.restore(known)

    @property
    def _is_main(self) -> bool:
        return self._setup.processes.is_main

    def _start(self) -> RunRecord:
        setup = self._setup
        record = RunRecord.start(
            self._folder,
            identity=setup.identity,
            plan=setup.plan,
            source=setup.source,
            data=setup.data,
        )
        self._resumption.write_recipe()
        if self._is_main:
            record.write()
        return record

    def run(self) -> TrainResult:
        """Take the remaining steps and write the adapter."""
        first_step = self._loop.step + 1
        with (
            Tracker(self._folder.path, first_step=first_step, enabled=self._is_main) as tracker,
            stop_on_signal() as stop,
            self._stepper,
        ):
            tracker.layout()
            while self._remaining() > 0 and not self._out_of_patience():
                try:
                    self._take_step(tracker)
                    self._observer.after_step(self._loop.step, tracker)
                    if self._must_stop(stop):
                        self._report(tracker, all_of_them=True)
                        return self._stopped(stop)
                    if self._is_due(self._recipe.checkpoint.every):
                        self._save()
                except DivergenceError as failure:
                    self._stepper.forget()
                    self._resumption.step_back(
                        failure, loop=self._loop, record=self._record, tracker=tracker
                    )
                    self._observer.restore(self._loop.step)
            return self._finish(tracker)

    def _take_step(self, tracker: Tracker) -> None:
        attempt = self._resumption.attempt(self._loop.step + 1)
        self._stepper.take(attempt=attempt)
        looks = self._observer.is_due(self._loop.step)
        self._report(tracker, all_of_them=looks or self._is_due(self._recipe.checkpoint.every))

    def _report(self, tracker: Tracker, *, all_of_them: bool) -> None:
        """Tell of the steps that are known to be good; an error of one is raised here."""
        for report in self._stepper.finished(all_of_them=all_of_them):
            tracker.scalars(report.scalars, report.step)
            self._tell("step", loss=report.scalars["train/loss"], step=report.step)
            if (estimate := self._stepper.first_estimate(self._remaining())) is not None:
                self._tell("note", estimate)

    def _remaining(self) -> int:
        return self._recipe.train.max_steps - self._loop.step

    def _out_of_patience(self) -> bool:
        """Whether no step has been better for so long that the recipe wants the run to end."""
        if self._recipe.validation.patience is None:
            return False  # without asking the other processes at every step
        if not self._setup.processes.any(self._observer.selection.out_of_patience):
            return False
        waited = self._observer.selection.verdict.waited
        self._tell("note", f"ends here: no better step in {waited} validations")
        if self._loop.step not in checkpoint_steps(self._folder.checkpoints):
            self._save()
        return True

    def _is_due(self, every: int) -> bool:
        return every > 0 and (self._loop.step % every == 0 or self._remaining() == 0)

    def _must_stop(self, stop: StopRequest) -> bool:
        return self._setup.processes.any(bool(stop)) and self._remaining() > 0

    def _save(self) -> None:
        path = self._loop.save(self._resumption.state())
        self._write_record()
        self._tell("checkpoint", f"saved {path}")

    def _write_record(self, status: str = "training") -> None:
        if self._is_main:
            self._record.write(status=status, step=self._loop.step)

    def _stopped(self, stop: StopRequest) -> TrainResult:
        self._tell("note", f"{stop.name or 'another process'} asks to stop; saving")
        self._save()
        self._write_record("interrupted")
        return TrainResult(
            run=self._folder,
            step=self._loop.step,
            finished=False,
            adapter_path=None,
            validation=self._observer.last,
            overfits_since=self._observer.selection.verdict.overfits_since,
            signal=stop.name or "another process",
        )

    def _finish(self, tracker: Tracker) -> TrainResult:
        selection = self._observer.selection
        chosen = selection.choose(self._loop.step)
        if chosen.adapter is not None:
            import_adapter_state(self._denoiser, chosen.adapter.tensors)
        # What was kept of an earlier step is an average already, where averages are asked for.
        with self._loop.averaged() if chosen.adapter is None else nullcontext():
            self._observer.at_end(chosen.step, tracker)
            if self._is_main:
                self._write(chosen, tracker)
        self._setup.processes.wait()
        return TrainResult(
            run=self._folder,
            step=self._loop.step,
            finished=True,
            adapter_path=finished_path(self._folder, self._setup.adapter),
            validation=self._observer.last,
            adapter_step=chosen.step,
            reason=chosen.reason,
            overfits_since=selection.verdict.overfits_since,
        )

    def _write(self, chosen: Chosen, tracker: Tracker) -> None:
        write_result(
            self._denoiser,
            config=self._setup.adapter,
            recipe=self._recipe,
            run=self._folder,
            record=self._record,
            source=self._setup.source,
            data=self._setup.data,
            last_step=self._loop.step,
            chosen=chosen,
            stack=self._setup.stack,
        )
        scores = final_scores(self._record.content, self._observer.last, step=chosen.step)
        tracker.hparams(flat_settings(self._recipe), scores)

    def _note(self, step: int, text: str) -> None:
        if self._is_main:
            self._progress(TrainEvent("note", step, self._recipe.train.max_steps, text))

    def _tell(
        self,
        kind: EventKind,
        text: str = "",
        *,
        loss: float | None = None,
        step: int | None = None,
    ) -> None:
        if self._is_main:
            number = self._loop.step if step is None else step
            self._progress(TrainEvent(kind, number, self._recipe.train.max_steps, text, loss))
