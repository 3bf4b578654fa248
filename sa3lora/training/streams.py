"""Where the random numbers of a step come from: one stream for each batch of the whole step.

A step takes `grad_accum` batches in each process. They are numbered in the order of the sampler,
over all processes: number `n * processes + rank` is the n-th of process `rank`. Everything that is
drawn for a batch (silence, time, noise, keep-masks, prompt dropout, dropout of the adapter) comes
from the stream of (seed, step, number). So it makes no difference which process computes a batch:
one process that accumulates four, two that accumulate two and four that accumulate none draw the
same, and a step draws the same again after a resume. Noise is coupled to clips over the whole
step: each process collects the latents of all (a megabyte a batch) and finds the same coupling.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Generator


def stream_seed(seed: int, *, step: int, batch: int, attempt: int = 0) -> int:
    """Derive the seed of one batch's draws; different arguments never share a stream.

    Args:
        seed: Of the run.
        step: The optimizer step, counted from 1.
        batch: Number of the batch among those of the step, over all processes.
        attempt: How many times this step was given other clips before.
    """
    digest = hashlib.sha256(f"draws {seed} {step} {batch} {attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Streams:
    """The streams of one process' batches, step by step."""

    def __init__(self, *, seed: int, rank: int, world_size: int) -> None:
        """Take what a run does not change."""
        self._seed = seed
        self._rank = rank
        self._world = world_size

    def of_step(self, step: int, *, attempt: int = 0) -> StepStreams:
        """Give the streams of one step."""
        return StepStreams(self._seed, step, attempt, rank=self._rank, world_size=self._world)


class StepStreams:
    """The streams of one step, by the number of the batch in its process."""

    def __init__(self, seed: int, step: int, attempt: int, *, rank: int, world_size: int) -> None:
        """Take what names the step; `Streams.of_step` makes these."""
        self._seed = seed
        self._step = step
        self._attempt = attempt
        self._rank = rank
        self._world = world_size

    def generator(self, number: int, *, rank: int | None = None) -> Generator:
        """Begin the stream of a batch of this process, or of another one."""
        return Generator().manual_seed(self._seed_of(number, rank=rank))

    def seed_dropout(self, number: int) -> None:
        """Seed the global generator for a batch: dropout layers draw from no other."""
        torch.manual_seed(self._seed_of(number, rank=None) ^ 1)

    def _seed_of(self, number: int, *, rank: int | None) -> int:
        batch = number * self._world + (self._rank if rank is None else rank)
        return stream_seed(self._seed, step=self._step, batch=batch, attempt=self._attempt)
