from __future__ import annotations

import threading

import pytest

from sa3lora.errors import DatasetError
from sa3lora.training.ahead import Ahead


class _Source:
    """Numbers in a row, with a position that only what is taken moves."""

    def __init__(self, broken: int | None = None) -> None:
        self.position = self.next = 0
        self.broken = broken
        self.threads: set[str] = set()

    def make(self, step: int, attempt: int) -> tuple[int, int]:
        self.threads.add(threading.current_thread().name)
        self.next += 1 + attempt
        if step == self.broken:
            raise DatasetError(f"step {step} cannot be read")
        return step, self.next

    def rewind(self) -> None:
        self.next = self.position


def test_steps_come_in_order_from_another_thread() -> None:
    source = _Source()
    ahead = Ahead(source.make, rewind=source.rewind)
    found = []
    for step in range(1, 4):
        found.append(ahead.take(step))
        source.position = found[-1][1]
        ahead.begin(step + 1)
    ahead.close()
    assert found == [(1, 1), (2, 2), (3, 3)]
    assert all(name.startswith("next-step") for name in source.threads)


def test_another_attempt_than_was_made_ready_begins_where_the_step_does() -> None:
    source = _Source()
    ahead = Ahead(source.make, rewind=source.rewind)
    _, source.position = ahead.take(1)
    ahead.begin(2)
    assert ahead.take(2, 1) == (2, 3)
    ahead.close()


def test_an_error_comes_with_the_step_it_belongs_to_and_is_forgotten_with_it() -> None:
    source = _Source(broken=2)
    ahead = Ahead(source.make, rewind=source.rewind)
    _, source.position = ahead.take(1)
    ahead.begin(2)
    with pytest.raises(DatasetError, match="step 2 cannot be read"):
        ahead.take(2)
    ahead.forget()
    assert source.next == 1
    ahead.begin(2)
    ahead.forget()
    ahead.close()


def test_closing_ends_the_thread() -> None:
    source = _Source()
    before = set(threading.enumerate())
    ahead = Ahead(source.make, rewind=source.rewind)
    ahead.take(1)
    ahead.begin(2)
    assert set(threading.enumerate()) - before
    ahead.close()
    assert not set(threading.enumerate()) - before
