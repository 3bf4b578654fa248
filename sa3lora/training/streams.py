"""Where the random numbers of a step come from: one stream for each batch of the whole step.

A step takes `grad_accum` batches in each process. They are numbered in the order of the sampler,
over all processes: number `n * processes + rank` is the n-th of process `rank`. Everything that is
drawn for a batch (silence, time, noise, keep-masks, prompt dropout, dropout of the adapter) comes
from the stream of (seed, step, number). So it makes no difference which process computes a batch:
one process that accumulates four, two that accumulate two and four that accumulate none draw the
same, and a step draws the same again after a resume. Noise is coupled to the clips of its own
batch only; otherwise every process would have to see the latents of all.
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
    """Opens the stream of each batch of one process."""

    def __init__(self, generator: Generator, *, seed: int, rank: int, world_size: int) -> None:
        """Take the generator that the objective draws from."""
        self._generator = generator
        self._seed = seed
        self._rank = rank
        self._world = world_size

    def open(self, number: int, *, step: int, attempt: int = 0) -> Generator:
        """Begin the stream of this process' batch `number` of a step.

        The global generator is seeded too, because dropout layers draw from no other.
        """
        batch = number * self._world + self._rank
        seed = stream_seed(self._seed, step=step, batch=batch, attempt=attempt)
        torch.manual_seed(seed ^ 1)
        return self._generator.manual_seed(seed)
