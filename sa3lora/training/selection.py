"""Keeping the adapter of the best step on disk while a run goes on, and taking it at the end."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sa3lora.adapters.config import LOKR
from sa3lora.adapters.files import AdapterFile, read_adapter, write_adapter
from sa3lora.adapters.lokr_folder import write_lokr_folder
from sa3lora.adapters.peft_read import WEIGHTS_NAME
from sa3lora.errors import RecipeError
from sa3lora.recipe import ValidationSection
from sa3lora.runs import RunFolder, sha256_file
from sa3lora.training.checkpoint import checkpoint_steps
from sa3lora.training.choice import Point, Verdict, judge
from sa3lora.training.history import History
from sa3lora.training.validation import TRAINING, VALIDATION, Validation

logger = logging.getLogger(__name__)

FOLDER_NAME = "best"


@dataclass(frozen=True)
class Chosen:
    """What a run's adapter is to be.

    Attributes:
        step: The step that it is of.
        reason: Why, in a sentence.
        adapter: Its tensors, None for those that are in memory.
    """

    step: int
    reason: str
    adapter: AdapterFile | None = None


class Selection:
    """The choice of one run. Files are written by the main process alone.

    A kept adapter stays for as long as the choice needs it now, or would need it if the run went
    on from one of its checkpoints.
    """

    def __init__(
        self,
        section: ValidationSection,
        *,
        run: RunFolder,
        held_out: bool,
        export: Callable[[], AdapterFile],
        is_main: bool = True,
    ) -> None:
        """Begin without a validation.

        Args:
            section: The recipe's `validate` section.
            run: The run's folder.
            held_out: Whether there are held-out clips.
            export: Gives the adapter as it is now.
            is_main: Whether this process writes.

        Raises:
            RecipeError: If the recipe wants to stop early but nothing is held out.
        """
        if section.patience is not None and not held_out:
            raise RecipeError(
                "validate.patience: there are no held-out clips to stop by. Prepare the dataset "
                "with a validation split, or set validate.patience=null"
            )
        self._section = section
        self._run = run
        self._held_out = held_out
        self._export = export
        self._is_main = is_main
        self._history = History(run.path)

    @property
    def verdict(self) -> Verdict:
        """What the validations say so far."""
        return judge(self._history.points)

    @property
    def steps(self) -> list[int]:
        """The validated steps."""
        return [point.step for point in self._history.points]

    @property
    def out_of_patience(self) -> bool:
        """Whether the recipe wants the run to stop here."""
        patience = self._section.patience
        return patience is not None and self.verdict.waited >= patience

    def restore(self, step: int, *, max_steps: int) -> list[str]:
        """Go back to what was known at a step.

        Returns:
            Sentences about kept adapters that are gone or damaged.
        """
        self._history.read(until=step)
        if step < max_steps:
            self._history.drop_extra(before=max_steps)
        told: list[str] = []
        while (kept := self.verdict.chosen) is not None and not self._is_intact(kept):
            if kept.sha256 is not None:
                told.append(
                    f"{self._path(kept.step)} is missing or damaged: the choice of the best step "
                    f"begins anew after step {step}"
                )
            self._history.mark_lost(kept.step)
        return told

    def add(self, validation: Validation, *, extra: bool) -> Verdict:
        """Take a validation into account, and keep the adapter if it is the best so far.

        Args:
            validation: What was measured just now.
            extra: Whether it was made only because the run ends here.
        """
        point = Point(
            step=validation.step,
            held_out=validation.by_track.get(VALIDATION, ()),
            training=validation.by_track[TRAINING],
            extra=extra,
        )
        self._history.add(point)
        verdict = self.verdict
        if self._held_out and verdict.chosen is point and self._is_main:
            self._keep(point.step)
            self._history.add(replace(point, sha256=sha256_file(self._weights(point.step))))
        if self._is_main:
            self._history.write()
            self._prune()
        return self.verdict

    def choose(self, last_step: int) -> Chosen:
        """Say what the adapter of a run that ends after `last_step` is, and why."""
        last = f"step {last_step} is the last one"
        if self._section.select == "last":
            return Chosen(last_step, f"{last}, as validate.select=last wants it")
        if not self._held_out:
            return Chosen(last_step, f"{last}, and no held-out clips say that another is better")
        kept = self.verdict.chosen
        if kept is None:
            return Chosen(last_step, f"{last}, and none was validated")
        reason = self._reason(kept)
        if kept.step == last_step or not self._is_main:
            return Chosen(kept.step, reason)
        return Chosen(kept.step, reason, read_adapter(self._path(kept.step)))

    def _reason(self, kept: Point) -> str:
        points = [point for point in self._history.points if not point.lost]
        lowest = min(points, key=lambda point: point.difference)
        against = f"{kept.difference:+.4f} against the base"
        if lowest.step == kept.step:
            found = (
                f"step {kept.step} has the lowest held-out loss of {len(points)} validations "
                f"({against})"
            )
        else:
            found = (
                f"after step {kept.step} no validation has a held-out loss lower by a standard "
                f"error ({against}; the lowest is {lowest.difference:+.4f} at step {lowest.step})"
            )
        if kept.difference >= 0:
            found += ". No better than the base: nothing was learned that carries over"
        return found

    def _prune(self) -> None:
        ends = [*checkpoint_steps(self._run.checkpoints), None]
        needed = set()
        for end in ends:
            points = self._history.points if end is None else self._history.until(end)
            for known in (points, [point for point in points if not point.extra]):
                kept = judge(known).chosen
                needed |= set() if kept is None else {self._path(kept.step)}
        for path in (self._run.path / FOLDER_NAME).glob("step-*.safetensors"):
            if path not in needed:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _keep(self, step: int) -> None:
        adapter, path = self._export(), self._path(step)
        path.parent.mkdir(exist_ok=True)
        if adapter.config.type == LOKR:
            shutil.rmtree(path, ignore_errors=True)
            write_lokr_folder(path, adapter)
        else:
            write_adapter(path, adapter, overwrite=True)

    def _path(self, step: int) -> Path:
        return self._run.path / FOLDER_NAME / f"step-{step:08d}.safetensors"

    def _weights(self, step: int) -> Path:
        path = self._path(step)
        return path / WEIGHTS_NAME if path.is_dir() else path  # lokr is a folder

    def _is_intact(self, point: Point) -> bool:
        path = self._weights(point.step)
        return path.is_file() and sha256_file(path) == point.sha256
