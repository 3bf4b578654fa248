"""Batches of clips of like length under a frame budget, in an order that can be resumed.

Everything is drawn from (seed, epoch): the same seed gives the same batches, on any machine, and a
sampler that is told an epoch and a position goes on exactly there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from sa3lora.errors import DatasetError
from sa3lora.latents.collate import Batch, Crop, collate

__all__ = ["Batch", "BatchPlan", "Crop", "LengthBatcher", "collate"]

# Lengths are shuffled by up to this share before sorting: enough to vary who meets whom, little
# enough to keep padding low.
_LENGTH_JITTER = 0.05
_EPOCHS_IN_MEMORY = 3


@dataclass(frozen=True)
class BatchPlan:
    """The clips of one batch, and the sampler state right after it.

    Keep `state` with a checkpoint taken after this batch: a data loader may have asked the
    sampler for later batches by then.
    """

    crops: tuple[Crop, ...]
    state: dict[str, Any]
    packed: bool = False

    @property
    def num_frames(self) -> int:
        """Frames of the longest clip, its silence included."""
        return max(crop.total_frames for crop in self.crops)

    @property
    def num_real(self) -> int:
        """Frames of all clips, their silence included."""
        return sum(crop.total_frames for crop in self.crops)

    @property
    def num_slots(self) -> int:
        """Frames that the batch occupies, padding included."""
        return self.num_real if self.packed else self.num_frames * len(self.crops)


class LengthBatcher:
    """Endless batches of clips of like length, at most `frames_per_batch` frames each.

    A padded batch occupies as many frames as its longest clip for every clip, a packed one only
    what its clips have, so it holds more of them.

    Every epoch shows every clip once, in another order. Clips longer than `max_frames` are cropped
    at a start drawn anew each epoch, every possible start being as likely, the last included.

    Several processes deal the same sequence of batches out among themselves, one after another
    and from one epoch into the next: together they take what a single process would take, so no
    batch comes twice. All batches are filled to the same budget, so that processes wait little.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        frames_per_batch: int,
        seed: int,
        max_frames: int | None = None,
        extra_frames: int = 0,
        silence_frames: float = 0.0,
        packed: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Set the law of the batches; nothing is drawn yet.

        Args:
            lengths: Frames of every clip.
            frames_per_batch: Budget of frames, padding included. A clip that is longer alone
                makes a batch of its own, and a warning says so.
            seed: Of everything drawn here.
            max_frames: Crop longer clips to this; None keeps whole clips.
            extra_frames: Silent frames that each clip gets on top, counted in the budget.
            silence_frames: Mean of the silence that goes on behind each clip, drawn anew each
                epoch, exponential and rounded down, never beyond `max_frames` in all. Drawn here,
                it decides who meets whom: drawn later, the longest silence of a batch would pad
                all the others.
            packed: Clips will lie end to end, so that padding does not count in the budget.
            rank: Number of this process.
            world_size: Number of processes.

        Raises:
            DatasetError: If there are no clips.
            ValueError: If a number is out of its range.
        """
        _check(lengths, frames_per_batch, max_frames=max_frames, rank=rank, world_size=world_size)
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._limit = max_frames or int(self._lengths.max())
        self._cropped = np.minimum(self._lengths, self._limit)
        self._budget = frames_per_batch
        self._extra = extra_frames
        self._silence = silence_frames
        self._packed = packed
        self._world = world_size
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._rank = rank
        # A round of several processes may lie on the border of two epochs.
        self._drawn = lru_cache(_EPOCHS_IN_MEMORY)(self._draw)
        self._move(rank)

    def _draw(self, epoch: int) -> list[tuple[Crop, ...]]:
        rng = np.random.default_rng([self._seed, epoch])
        starts = rng.integers(0, self._lengths - self._cropped, endpoint=True)
        jitter = 1.0 + _LENGTH_JITTER * rng.random(len(self._lengths))
        silence = self._draw_silence(rng)
        order = np.argsort((self._cropped + silence) * jitter, kind="stable")
        batches: list[tuple[Crop, ...]] = []
        current: list[Crop] = []
        longest = total = 0
        for index in order:
            crop = Crop(
                int(index), int(starts[index]), int(self._cropped[index]), int(silence[index])
            )
            frames = crop.total_frames + self._extra
            longest, total = max(longest, frames), total + frames
            slots = total if self._packed else longest * (len(current) + 1)
            if current and slots > self._budget:
                batches.append(tuple(current))
                current, longest, total = [], frames, frames
            current.append(crop)
        batches.append(tuple(current))
        return [batches[n] for n in rng.permutation(len(batches))]

    def _draw_silence(self, rng: np.random.Generator) -> np.ndarray:
        if self._silence == 0:
            return np.zeros_like(self._cropped)
        drawn = rng.exponential(self._silence, len(self._cropped)).astype(np.int64)
        silence: np.ndarray = np.minimum(drawn, self._limit - self._cropped)
        return silence

    def _move(self, count: int) -> None:
        self._epoch, self._position = self._place(count)

    def _place(self, offset: int) -> tuple[int, int]:
        """Find epoch and position of the batch that lies so many from here, either way."""
        epoch, position = self._epoch, self._position + offset
        while position < 0:
            epoch -= 1
            position += len(self._drawn(epoch))
        while position >= len(self._drawn(epoch)):
            position -= len(self._drawn(epoch))
            epoch += 1
        return epoch, position

    def __len__(self) -> int:
        """Count the batches of the current epoch, those of the other processes included."""
        return len(self._drawn(self._epoch))

    def __iter__(self) -> Iterator[BatchPlan]:
        """Go on from the current position, without end."""
        return self

    def __next__(self) -> BatchPlan:
        """Give this process' next batch; after the last of an epoch the next epoch begins."""
        return self.next_round()[self._rank]

    def next_round(self) -> list[BatchPlan]:
        """Give the next batch of every process, by rank; each has this process' own state."""
        places = [self._place(rank - self._rank) for rank in range(self._world)]
        self._move(self._world)
        state = self.state_dict()
        return [
            BatchPlan(self._drawn(epoch)[position], state, packed=self._packed)
            for epoch, position in places
        ]

    @property
    def epoch(self) -> int:
        """Which epoch the next batch belongs to, counted from 0."""
        return self._epoch

    def state_dict(self) -> dict[str, Any]:
        """Give what `load_state_dict` needs to go on from here: plain JSON values."""
        return {"epoch": self._epoch, "position": self._position, "identity": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another sampler of the same clips and settings was.

        Args:
            state: From `state_dict`.

        Raises:
            DatasetError: If clips, budget, seed or number of processes are others: the batches
                would silently be others too.
        """
        if state["identity"] != self._identity():
            raise DatasetError(
                "the clips or the batching differ from those of the checkpoint: the dataset, "
                "frames_per_batch, max_duration_s, packing, seed or the number of processes "
                "changed. Restore them, or start a new run."
            )
        self._epoch = int(state["epoch"])
        self._position = int(state["position"])

    def _identity(self) -> str:
        settings: list[Any] = [
            self._budget,
            self._extra,
            self._seed,
            self._world,
            *self._cropped.tolist(),
        ]
        settings += self._lengths.tolist()
        settings += [self._silence, self._packed, self._limit]
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]


def _check(
    lengths: Sequence[int],
    frames_per_batch: int,
    *,
    max_frames: int | None,
    rank: int,
    world_size: int,
) -> None:
    if not lengths:
        raise DatasetError("there are no clips to make batches of: this split is empty.")
    for name, value in (("frames_per_batch", frames_per_batch), ("max_frames", max_frames)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if min(lengths) < 1:
        raise ValueError(f"every clip needs a frame, got a length of {min(lengths)}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be below world_size {world_size}, got {rank}")
