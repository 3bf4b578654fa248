from __future__ import annotations

import torch
from torch import Generator

from sa3lora.training.streams import Streams, stream_seed


def _draws(rank: int, world_size: int, batches: int, *, step: int = 3) -> list[tuple[float, float]]:
    streams = Streams(Generator(), seed=1, rank=rank, world_size=world_size)
    found = []
    for number in range(batches):
        generator = streams.open(number, step=step)
        found.append((float(torch.rand((), generator=generator)), float(torch.rand(()))))
    return found


def test_two_processes_draw_what_one_draws_for_the_same_batches() -> None:
    with torch.random.fork_rng():
        alone = _draws(0, 1, 4)
        first, second = _draws(0, 2, 2), _draws(1, 2, 2)
        assert [first[0], second[0], first[1], second[1]] == alone
        assert len({*alone}) == 4
        assert _draws(0, 1, 4) == alone
        assert set(_draws(0, 1, 4, step=4)).isdisjoint(alone)


def test_no_two_streams_are_the_same() -> None:
    seeds = [
        stream_seed(seed, step=step, batch=batch, attempt=attempt)
        for seed in (1, 12)
        for step in (1, 11, 111)
        for batch in (0, 1, 11)
        for attempt in (0, 1)
    ]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
