"""What a run does when a loss is no number: step back once with a lower rate, then give up.

Going back means to the newest whole checkpoint, or to the beginning where there is none yet. The
step that failed is then taken with other clips. All of it is kept in later checkpoints, and what
happened before the first of those happens again after a resume, so a run that was killed and
resumed ends in the same adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sa3lora.errors import DivergenceError

LR_FACTOR = 0.5
_SHOWN_CLIPS = 8


@dataclass(frozen=True)
class Setback:
    """One time that a run stepped back.

    Attributes:
        step: The step that could not be taken, counted from 1.
        back_to: Number of finished steps that it went on from.
        reason: What was no number.
        clips: The clips that it came from; the run never takes that step with them again.
        lr_factor: What the learning rate is multiplied by since then.
        pardoned: Whether the user has changed the learning rate since, which gives a new chance.
    """

    step: int
    back_to: int
    reason: str
    clips: tuple[str, ...]
    lr_factor: float
    pardoned: bool = False

    def __str__(self) -> str:
        """Tell it as a sentence."""
        return (
            f"{self.reason}, from clips {_listed(self.clips)}. Going on after step {self.back_to} "
            f"with {self.lr_factor:g} of the learning rate, and without these clips in step "
            f"{self.step}"
        )


class Recovery:
    """The setbacks of a run so far, and what follows from them."""

    def __init__(self) -> None:
        """Begin without any."""
        self._setbacks: list[Setback] = []

    @property
    def lr_factor(self) -> float:
        """What every learning rate is multiplied by."""
        counting = [each for each in self._setbacks if not each.pardoned]
        return counting[-1].lr_factor if counting else 1.0

    def attempt(self, step: int) -> int:
        """Count how often a step failed before."""
        return sum(each.step == step for each in self._setbacks)

    def add(self, failure: DivergenceError, *, back_to: int) -> Setback:
        """Take note of a failure that the run steps back from."""
        found = Setback(
            step=failure.step,
            back_to=back_to,
            reason=str(failure),
            clips=tuple(failure.clips),
            lr_factor=LR_FACTOR,
        )
        self._setbacks.append(found)
        return found

    def require_chance(self, failure: DivergenceError, *, saved_step: int | None) -> None:
        """Let a first failure pass and stop a run at the second.

        Args:
            failure: What went wrong now.
            saved_step: Step of the newest whole checkpoint, None if there is none.

        Raises:
            DivergenceError: With both failures, the clips, and what to do next.
        """
        before = [each for each in self._setbacks if not each.pardoned]
        if not before:
            return
        kept = (
            "there is no checkpoint yet"
            if saved_step is None
            else f"checkpoints up to step {saved_step} are untouched"
        )
        raise DivergenceError(
            f"{failure}, from clips {_listed(failure.clips)}.\nStep {before[-1].step} failed too, "
            f"and the learning rate was lowered to {before[-1].lr_factor:g} of itself then, so the "
            f"run ends here; {kept}. Look at these clips, or go on with a lower rate: --resume "
            "--allow-change optim.lr optim.lr=RATE. On a bfloat16 base, train.base_dtype=float32 "
            "may help.",
            step=failure.step,
            clips=failure.clips,
        )

    def pardon(self) -> None:
        """Forget lowered rates, because the user has chosen another; skipped clips stay skipped."""
        self._setbacks = [replace(each, pardoned=True) for each in self._setbacks]

    def to_json(self) -> list[dict[str, Any]]:
        """Give plain values for checkpoint and manifest."""
        return [{**asdict(each), "clips": list(each.clips)} for each in self._setbacks]

    def load(self, entries: Sequence[dict[str, Any]]) -> None:
        """Take over what `to_json` gave."""
        self._setbacks = [Setback(**{**each, "clips": tuple(each["clips"])}) for each in entries]


def _listed(clips: Sequence[str]) -> str:
    shown = ", ".join(clips[:_SHOWN_CLIPS])
    more = len(clips) - _SHOWN_CLIPS
    return f"{shown} and {more} more" if more > 0 else shown or "nobody knows which"
