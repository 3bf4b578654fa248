"""The processes of one prep, when `accelerate launch` started several."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from sa3lora.errors import Sa3LoraError

T = TypeVar("T")
# Processes meet after hours of encoding; the library would give up after minutes.
_PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is, and how they talk. One process talks to nobody."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Join the other processes, if a launcher started more than one.

        Returns:
            This process's place.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
        return cls(state.process_index, state.num_processes)

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Give every process the values of all, by rank."""
        if self.world_size == 1:
            return [value]
        from accelerate.utils import gather_object

        gathered: list[T] = gather_object([value])
        return gathered

    def check(self, error: Sa3LoraError | None) -> None:
        """Stop all processes if one of them failed, so that none waits for it forever.

        Args:
            error: What happened here.

        Raises:
            Sa3LoraError: The failure of the lowest rank that has one.
        """
        for failure in self.gather(error):
            if failure is not None:
                raise failure

    def first(self, work: Callable[[], T]) -> T:
        """Do something once, in the first process, and tell all.

        Args:
            work: Gives a value that can be pickled.

        Returns:
            The value, in every process.

        Raises:
            Sa3LoraError: In every process, if the work failed.
        """
        value: T | None = None
        error: Sa3LoraError | None = None
        if self.is_first:
            try:
                value = work()
            except Sa3LoraError as failure:
                error = failure
        results = self.gather((value, error))
        first_value, first_error = results[0]
        if first_error is not None:
            raise first_error
        return first_value  # type: ignore[return-value]  # the first process set it

    def share(self, items: Sequence[T], *, cost: Callable[[T], float]) -> list[T]:
        """Take this process's part of the work, of about equal cost in all.

        Args:
            items: The same in every process.
            cost: Of one item.

        Returns:
            The part, in the order given.
        """
        loads = [0.0] * self.world_size
        mine: set[int] = set()
        for index in sorted(range(len(items)), key=lambda n: -cost(items[n])):
            lightest = min(range(self.world_size), key=loads.__getitem__)
            loads[lightest] += cost(items[index])
            if lightest == self.rank:
                mine.add(index)
        return [item for index, item in enumerate(items) if index in mine]
