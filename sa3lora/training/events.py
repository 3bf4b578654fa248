"""What a run tells its caller while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

EventKind = Literal["note", "warning", "step", "checkpoint", "validation", "preview"]


@dataclass(frozen=True)
class TrainEvent:
    """One thing that happened.

    Attributes:
        kind: What it was.
        step: Number of finished steps.
        max_steps: Length of the run.
        text: A sentence for the user; empty for plain steps.
        loss: Training loss of a step, else None.
    """

    kind: EventKind
    step: int
    max_steps: int
    text: str = ""
    loss: float | None = None


Progress = Callable[[TrainEvent], None]


def no_progress(event: TrainEvent) -> None:
    """Ignore an event."""
