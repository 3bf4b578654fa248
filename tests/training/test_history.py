from __future__ import annotations

from pathlib import Path

import pytest

from sa3lora.errors import RunError
from sa3lora.training.choice import Point
from sa3lora.training.history import FILE_NAME, History


def _history(folder: Path, *points: Point) -> History:
    history = History(folder)
    for point in points:
        history.add(point)
    history.write()
    return history


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    points = [
        Point(10, (0.1, 1 / 3), (-0.2,), sha256="ab"),
        Point(20, (), (-0.2, 1e-300), lost=True, extra=True),
    ]
    _history(tmp_path, *points)
    again = History(tmp_path)
    again.read(until=20)
    assert again.points == points


def test_later_validations_than_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    _history(tmp_path, Point(10, (0.1,), (0.1,)), Point(20, (0.2,), (0.1,)))
    again = History(tmp_path)
    again.read(until=15)
    assert [point.step for point in again.points] == [10]
    again.add(Point(10, (0.3,), (0.1,)))
    assert [point.held_out for point in again.points] == [(0.3,)]


def test_a_longer_run_does_not_know_the_end_of_the_shorter_one(tmp_path: Path) -> None:
    history = _history(tmp_path, Point(3, (0.1,), (0.1,)), Point(4, (0.0,), (0.1,), extra=True))
    history.drop_extra(before=6)
    assert [point.step for point in history.points] == [3]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"step": 1}\n', encoding="utf-8")
    with pytest.raises(RunError, match=rf"{FILE_NAME} is damaged .*Delete it to go on"):
        History(tmp_path).read(until=9)
