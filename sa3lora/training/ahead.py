"""The next step's clips, texts and draws are made ready while the present step is computed.

What is made follows from the step's number and from nothing that the step before changes, so it is
the same, bit for bit, as without. An error in it is raised when its step is taken, not earlier.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """One thread that makes steps ready, one at a time."""

    def __init__(self, make: Callable[[int, int], T], *, rewind: Callable[[], None]) -> None:
        """Take what makes a step ready; nothing runs yet.

        Args:
            make: Makes step number `step` ready in its attempt number `attempt`; it is called from
                the thread alone and may go on in the data.
            rewind: Goes back in the data to where the step begins that is taken next.
        """
        self._make = make
        self._rewind = rewind
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="next-step")
        self._begun: tuple[tuple[int, int], Future[T]] | None = None

    def begin(self, step: int, attempt: int = 0) -> None:
        """Let the thread begin with a step, the next that will be asked for."""
        self._begun = (step, attempt), self._thread.submit(self._make, step, attempt)

    def take(self, step: int, attempt: int = 0) -> T:
        """Wait for a step and give it; one that was not begun with is made now.

        Raises:
            Exception: Whatever went wrong while it was made ready.
        """
        if self._begun is None or self._begun[0] != (step, attempt):
            self.forget()
            self.begin(step, attempt)
        assert self._begun is not None
        (_, future), self._begun = self._begun, None
        return future.result()

    def forget(self) -> None:
        """Let go of the step that was begun with, its error included, and rewind the data."""
        if self._begun is not None:
            wait([self._begun[1]])
            self._begun = None
        self._rewind()

    def close(self) -> None:
        """End the thread, when it is done with what it is doing."""
        self._begun = None
        self._thread.shutdown(cancel_futures=True)
