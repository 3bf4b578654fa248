"""The failures a user can meet, each saying what is wrong, what would be right and what to do next.

The command line prints one as `Kind: message` and ends with status 1, or 2 for a `UsageError`.
Anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import os
from collections.abc import Sequence


class Sa3LoraError(Exception):
    """Base of every failure this project expects."""


class UsageError(Sa3LoraError):
    """Report arguments that can never work, whatever the files hold."""


class ModelError(Sa3LoraError):
    """Report a model that cannot be found, or whose configuration or weights do not fit."""


class CheckpointError(Sa3LoraError):
    """Report a training checkpoint that is missing, damaged or of another run."""


class AdapterError(Sa3LoraError):
    """Report an adapter file that cannot be read, written or used."""


class AdapterMismatchError(AdapterError):
    """Report an adapter that belongs to another base model."""


class RecipeError(Sa3LoraError):
    """Report the problems of a recipe, all of them at once."""


class DatasetError(Sa3LoraError):
    """Report a folder of audio or a latents dataset that cannot be used."""


class RunError(Sa3LoraError):
    """Report a run folder that is taken, missing or damaged."""


class DivergenceError(RunError):
    """Report a loss, gradients or trained tensors that are no numbers.

    Args:
        message: What is no number.
        step: The step that could not be taken, counted from 1; 0 if nobody counts.
        clips: The clips that it came from.
    """

    def __init__(self, message: str, *, step: int = 0, clips: Sequence[str] = ()) -> None:
        """Keep step and clips, so that a run can step back and name them."""
        super().__init__(message)
        self.step = step
        self.clips = list(clips)


class EvaluationError(Sa3LoraError):
    """Report a score that cannot be computed from what was given."""


class AudioError(Sa3LoraError):
    """Report an audio file that cannot be read or written.

    Args:
        path: The file; the message opens with its name.
        reason: What is wrong with it, such as `0 bytes`, without the name.
        advice: The next step, as a sentence; not needed where the reason tells it.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, advice: str = "") -> None:
        """Keep all parts, so that a caller can list many files in one message."""
        # All go to Exception: otherwise the error could not return from a worker process.
        super().__init__(os.fspath(path), reason, advice)
        self.path = os.fspath(path)
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        """Give `path: reason. advice`."""
        return f"{self.path}: {self.reason}" + (f". {self.advice}" if self.advice else "")
