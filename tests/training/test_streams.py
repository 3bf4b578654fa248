from __future__ import annotations

import torch

from sa3lora.training.streams import Streams, stream_seed


def _draws(rank: int, world_size: int, batches: int, *, step: int = 3) -> list[tuple[float, float]]:
    streams = Streams(seed=1, rank=rank, world_size=world_size).of_step(step)
    found = []
    for number in range(batches):
        drawn = float(torch.rand((), generator=streams.generator(number)))
        streams.seed_dropout(number)
        found.append((drawn, float(torch.rand(()))))
    return found


def test_a_process_can_begin_the_stream_of_another() -> None:
    mine, other = (Streams(seed=1, rank=r, world_size=2).of_step(3) for r in range(2))
    theirs = torch.rand(3, generator=other.generator(4))
    assert torch.equal(torch.rand(3, generator=mine.generator(4, rank=1)), theirs)


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
