"""What a run looks at between steps: paired losses on fixed tuples, and previews."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from sa3lora.models.denoiser import Denoiser
from sa3lora.runs import RunFolder
from sa3lora.training.data import TextEmbeddings
from sa3lora.training.events import EventKind
from sa3lora.training.preview import Previewer
from sa3lora.training.result import RunRecord
from sa3lora.training.session import Setup
from sa3lora.training.tracking import Tracker
from sa3lora.training.validation import Validation, Validator

Tell = Callable[[EventKind, str], None]
Averaged = Callable[[], AbstractContextManager[None]]


class Observer:
    """Looks at the adapter when it is time to; changes nothing that training depends on.

    Attributes:
        last: The newest paired losses, None before the first.
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
        self._setup = setup
        self._denoiser = denoiser
        self._record = record
        self._tell = tell
        self._averaged = averaged
        self._validator = (
            Validator(recipe, data=setup.data, source=setup.source, text=text)
            if recipe.validation.every
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
            )
            if recipe.preview.every
            else None
        )

    def after_step(self, step: int, tracker: Tracker) -> None:
        """Validate and make previews where `step` is due for them."""
        recipe = self._setup.recipe
        if self._validator is not None and self._is_due(step, recipe.validation.every):
            self._validate(self._validator, step, tracker)
        if self._previewer is not None and self._is_due(step, recipe.preview.every):
            self._preview(self._previewer, step, tracker)

    def at_end(self, step: int) -> None:
        """Have losses to show, also where a run was resumed behind its last step."""
        if self.last is None and self._validator is not None:
            with self._averaged():
                self.last = self._validator.run(self._denoiser, step)

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self._setup.recipe.train.max_steps

    def _validate(self, validator: Validator, step: int, tracker: Tracker) -> None:
        with self._setup.autocast(), self._averaged():
            self.last = validator.run(self._denoiser, step)
        self._record.add_validation(self.last)
        tracker.scalars(self.last.scalars(), step)
        if self._setup.processes.is_main:
            self._record.write(status="training", step=step)
        self._tell("validation", str(self.last))

    def _preview(self, previewer: Previewer, step: int, tracker: Tracker) -> None:
        if self._setup.processes.is_main:
            with self._averaged():
                files = previewer.run(self._denoiser, step, tracker=tracker)
            self._tell("preview", f"previews: {', '.join(str(path) for path in files)}")
        self._setup.processes.wait()
