"""The losses by track of a run's validations, on disk, so that a resumed run chooses the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from sa3lora.errors import RunError
from sa3lora.runs import write_bytes_atomic
from sa3lora.training.choice import Point

FILE_NAME = "validation.jsonl"


class History:
    """The points of a run in order; one line each in `validation.jsonl`."""

    def __init__(self, folder: Path) -> None:
        """Point at a run's folder; `read` takes what is there."""
        self.points: list[Point] = []
        self._path = folder / FILE_NAME

    def read(self, *, until: int) -> None:
        """Take over what was recorded up to a step.

        A validation that was made only because the run ended there does not count in a run that
        goes on behind it: an uninterrupted run would not have made it.

        Raises:
            RunError: If the file is damaged.
        """
        if not self._path.is_file():
            return
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
            points = [_point(json.loads(line)) for line in lines]
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"{self._path} is damaged ({error}). Delete it to go on: the choice of the best "
                "step then begins anew."
            ) from error
        self.points = [point for point in points if point.step <= until]

    def add(self, point: Point) -> None:
        """Put a validation at the end, in place of whatever is not before it."""
        self.points = [one for one in self.points if one.step < point.step] + [point]

    def drop_extra(self, *, before: int) -> None:
        """Forget validations that only the end of a shorter run had made."""
        self.points = [one for one in self.points if not one.extra or one.step >= before]

    def mark_lost(self, step: int) -> None:
        """Note that a step's stored adapter cannot be chosen any more."""
        self.points = [replace(p, lost=True) if p.step == step else p for p in self.points]

    def until(self, step: int) -> list[Point]:
        """Give the validations up to a step."""
        return [point for point in self.points if point.step <= step]

    def write(self) -> None:
        """Write the file whole."""
        write_bytes_atomic(self._path, _lines(self.points).encode())


def _lines(points: Iterable[Point]) -> str:
    return "".join(json.dumps(asdict(point), allow_nan=False) + "\n" for point in points)


def _point(content: dict[str, object]) -> Point:
    point = Point(**content)  # type: ignore[arg-type]
    return replace(point, held_out=tuple(point.held_out), training=tuple(point.training))
