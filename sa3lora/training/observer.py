"""What a run looks at between steps: paired losses on fixed tuples, drift, and previews."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from sa3lora.adapters.inject import export_file
from sa3lora.models.denoiser import Denoiser
from sa3lora.probe import Gap
from sa3lora.runs import RunFolder
from sa3lora.training.choice import Verdict
from sa3lora.training.data import TextEmbeddings
from sa3lora.training.drift import DriftProbe
from sa3lora.training.events import EventKind
from sa3lora.training.preview import Previewer
from sa3lora.training.result import RunRecord
from sa3lora.training.selection import Selection
from sa3lora.training.session import Setup
from sa3lora.training.sharding import whole_base
from sa3lora.training.teacher import TEACHER_FOLDER
from sa3lora.training.teacher_probe import teacher_probes
from sa3lora.training.tracking import Tracker
from sa3lora.training.validation import Validation, Validator

Tell = Callable[[EventKind, str], None]
Averaged = Callable[[], AbstractContextManager[None]]


class Observer:
    """Looks at the adapter when it is time to; changes nothing that training depends on.

    Attributes:
        last: The newest paired losses, None before the first.
        selection: The choice of the step whose adapter the run will write.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        denoiser: Denoiser,
        text: TextEmbeddings,
        run: RunFolder,
        record: RunRecord,
        tell: Tell,
        averaged: Averaged = nullcontext,
    ) -> None:
        """Choose tuples and prompts; nothing is computed yet.

        What is looked at is what `averaged` puts in place while it is open.
        """
        recipe = setup.recipe
        self.last: Validation | None = None
        self._seen: dict[int, Validation] = {}
        self.selection = Selection(
            recipe.validation,
            run=run,
            held_out=setup.data.validation is not None,
            export=lambda: export_file(denoiser, setup.adapter),
            is_main=setup.processes.is_main,
        )
        self._setup = setup
        self._denoiser = denoiser
        self._record = record
        self._tell = tell
        self._averaged = averaged
        self._validator = (
            Validator(
                recipe,
                data=setup.data,
                source=setup.source,
                text=text,
                probes=teacher_probes(setup, run.path / TEACHER_FOLDER),
            )
            if recipe.validation.every
            else None
        )
        self._drift = (
            DriftProbe(setup.source.config, text=text)
            if recipe.validation.every and recipe.validation.drift
            else None
        )
        self._previewer = (
            Previewer(
                recipe,
                source=setup.source,
                data=setup.data,
                text=text,
                folder=run.previews,
                device=str(setup.device),
                few_step=setup.few_step,
            )
            if recipe.preview.every
            else None
        )

    def restore(self, step: int) -> None:
        """Go back to what was known at a step."""
        for sentence in self.selection.restore(step, max_steps=self._max_steps):
            self._tell("warning", sentence)
        self._record.keep_validations(self.selection.steps)
        self._record.note_choice(self.selection.verdict)

    def is_due(self, step: int) -> bool:
        """Tell whether there is something to look at after a step."""
        recipe = self._setup.recipe
        asked = (self._validator, recipe.validation.every), (self._previewer, recipe.preview.every)
        return any(tool is not None and self._is_due(step, every) for tool, every in asked)

    def after_step(self, step: int, tracker: Tracker) -> None:
        """Validate and make previews where `step` is due for them."""
        recipe = self._setup.recipe
        if self._validator is not None and self._is_due(step, recipe.validation.every):
            self._validate(self._validator, step, tracker)
        if self._previewer is not None and self._is_due(step, recipe.preview.every):
            self._preview(self._previewer, step, tracker)

    def at_end(self, step: int, tracker: Tracker) -> None:
        """Look at the adapter that is written, also where a run was resumed behind its last step.

        Args:
            step: The step that the adapter in memory is of; it is looked at as it is.
            tracker: For previews of a step that was none of those listened to.
        """
        self._averaged = nullcontext
        if self._validator is not None:
            self.last = self._seen.get(step)
            if self.last is None:
                with self._setup.autocast():
                    self.last = self._validator.run(self._denoiser, step)
        # All processes are asked at once: the main one may be writing already.
        if self._previewer is not None and self._setup.processes.any(not self._previewer.has(step)):
            self._preview(self._previewer, step, tracker)

    @property
    def _max_steps(self) -> int:
        return self._setup.recipe.train.max_steps

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self._max_steps

    def _validate(self, validator: Validator, step: int, tracker: Tracker) -> None:
        drift = {}
        extra = step % self._setup.recipe.validation.every != 0
        before = self.selection.verdict
        with self._averaged():
            with self._setup.autocast():
                self.last = self._seen[step] = validator.run(self._denoiser, step)
                if self._drift is not None:
                    drift = {"fit/drift": self._drift.measure(self._denoiser)}
            verdict = self.selection.add(self.last, extra=extra)
        scalars = {**self.last.scalars(), **verdict_scalars(verdict), **drift}
        tracker.scalars(scalars, step)
        self._record.add_validation(self.last, verdict, drift)
        if self._setup.processes.is_main:
            self._record.write(status="training", step=step)
        gap = "" if verdict.gap is None else f"; gap {verdict.gap}"
        self._tell("validation", f"{self.last}{gap}")
        self._warn(before, verdict)

    def _warn(self, before: Verdict, now: Verdict) -> None:
        """Tell of overfitting when it is found, and when a later step turns out better."""
        if now.chosen is None:
            return
        if before.overfits_since is not None and now.overfits_since is None:
            self._tell("note", f"step {now.chosen.step} is better than all before: no overfitting")
        if before.overfits_since is None and now.overfits_since is not None:
            self._tell("warning", overfitting_text(now))

    def _preview(self, previewer: Previewer, step: int, tracker: Tracker) -> None:
        with whole_base(self._denoiser, self._setup.sharding):
            if self._setup.processes.is_main:
                with self._averaged():
                    files = previewer.run(self._denoiser, step, tracker=tracker)
                self._tell("preview", f"previews: {', '.join(str(path) for path in files)}")
        self._setup.processes.wait()


def overfitting_text(verdict: Verdict) -> str:
    """Say what overfitting was found, and what will become of it."""
    assert verdict.chosen is not None  # it is counted from there
    return (
        f"overfitting since step {verdict.overfits_since}: the loss falls on the training tracks "
        f"and not on the held-out ones. Since step {verdict.chosen.step}, which is kept, the gap "
        f"between them grew by {verdict.growth}. More steps will hardly help; more tracks, fewer "
        "steps, a lower adapter.r or optim.lr may."
    )


def verdict_scalars(verdict: Verdict) -> Mapping[str, float]:
    """Give the scalars of a verdict by tag."""
    values: dict[str, float | None] = {}
    for name, gap in (("gap", verdict.gap), ("gap_growth", verdict.growth)):
        if isinstance(gap, Gap):
            values |= {
                f"fit/{name}": gap.value,
                f"margins/{name}_low": gap.low,
                f"margins/{name}_high": gap.high,
            }
    if verdict.gap is not None and verdict.chosen is not None:
        values["validation/chosen_step"] = float(verdict.chosen.step)
    return {tag: value for tag, value in values.items() if value is not None}
