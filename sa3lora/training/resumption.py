"""How a run goes on from a checkpoint: after a kill, with allowed changes, after a bad loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sa3lora.errors import DivergenceError
from sa3lora.runs import RunFolder, write_bytes_atomic
from sa3lora.training.events import EventKind
from sa3lora.training.identity import (
    Changes,
    check_identity,
    of_the_measure,
    of_the_order,
)
from sa3lora.training.loop import ResumableLoop
from sa3lora.training.recovery import Recovery
from sa3lora.training.result import RunRecord
from sa3lora.training.session import Setup
from sa3lora.training.tracking import Tracker


class Resumption:
    """What a run was before this process, and the way back to its last good state.

    Attributes:
        record: Manifest of the run to resume; None if it is new or was killed before it had one.
    """

    def __init__(
        self,
        setup: Setup,
        run: RunFolder,
        *,
        resume: bool,
        allow_change: Sequence[str],
        tell: Callable[[EventKind, str], None],
    ) -> None:
        """Read the manifest of a run to resume.

        Raises:
            RunError: If it was started otherwise and that is not allowed.
        """
        self.record: RunRecord | None = None
        self._setup = setup
        self._run = run
        self._tell = tell
        self._recovery = Recovery()
        self._changes = Changes({})
        self._first_position = setup.data.state_dict()
        if resume and run.manifest_path.is_file():
            self.record = RunRecord(run, run.manifest())
            self._changes = check_identity(
                self.record.identity, setup.identity, name=run.name, allow=allow_change
            )

    def attempt(self, step: int) -> int:
        """Count how often a step failed before."""
        return self._recovery.attempt(step)

    def state(self) -> dict[str, Any]:
        """Give what a checkpoint keeps beside the loop's own state, from all processes."""
        positions = self._setup.processes.gather(self._setup.data.state_dict())
        return {"sampler": positions, "setbacks": self._recovery.to_json()}

    def write_recipe(self) -> None:
        """Write the recipe as the run goes on with it."""
        if self._setup.processes.is_main:
            text = self._setup.recipe.to_yaml()
            write_bytes_atomic(self._run.recipe_path, text.encode())

    def restore(self, loop: ResumableLoop, record: RunRecord) -> int:
        """Go to the newest whole checkpoint, or stay at step 0 if there is none.

        Returns:
            The step up to which validations count: 0 if they measured something else until now.
        """
        info = loop.restore()
        if info is None:
            self._tell("note", "no checkpoint to go on from, so it starts at step 0")
        else:
            self._recovery.load(info.get("setbacks", []))
            self._tell("note", f"going on after step {loop.step}")
        record.forget_after(loop.step)
        if self._changes:
            self._take_changes(loop, record)
        changed = record.changed_since(loop.step)
        if "optim.lr" in changed:
            self._recovery.pardon()
        record.content["setbacks"] = self._recovery.to_json()
        loop.lr_factor = self._recovery.lr_factor
        if info is not None and of_the_order(changed):
            self._tell("note", "the batches are others than before, so they begin with an epoch")
        elif info is not None:
            self._go_to(info)
        return 0 if of_the_measure(changed) else loop.step

    def step_back(
        self, failure: DivergenceError, *, loop: ResumableLoop, record: RunRecord, tracker: Tracker
    ) -> None:
        """Go back to the last good state with a lower learning rate.

        Raises:
            DivergenceError: The second time.
        """
        info = loop.restore()
        try:
            self._recovery.require_chance(failure, saved_step=None if info is None else loop.step)
        except DivergenceError:
            self._write(record, "diverged", loop.step)
            raise
        if info is None:
            loop.reset()
            self._setup.data.load_state_dict(self._first_position)
        elif not of_the_order(record.changed_since(loop.step)):
            self._go_to(info)
        else:
            self._setup.data.load_state_dict(self._first_position)
        setback = self._recovery.add(failure, back_to=loop.step)
        loop.lr_factor = self._recovery.lr_factor
        record.forget_after(loop.step)
        record.content["setbacks"] = self._recovery.to_json()
        self._write(record, "training", loop.step)
        tracker.forget_after(loop.step)
        tracker.scalars({"train/setback": float(failure.step)}, loop.step)
        self._tell("note", str(setback))

    def _go_to(self, info: dict[str, Any]) -> None:
        self._setup.data.load_state_dict(info["sampler"][self._setup.processes.rank])

    def _take_changes(self, loop: ResumableLoop, record: RunRecord) -> None:
        record.take_changes(self._changes, identity=self._setup.identity, step=loop.step)
        self.write_recipe()
        self._write(record, "training", loop.step)
        for line in self._changes.lines():
            self._tell("note", f"from here on {line}")

    def _write(self, record: RunRecord, status: str, step: int) -> None:
        if self._setup.processes.is_main:
            record.write(status=status, step=step)
