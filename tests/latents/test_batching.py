from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest

from sa3lora.errors import DatasetError
from sa3lora.latents.batching import LengthBatcher

LENGTHS = [int(n) for n in np.random.default_rng(0).integers(5, 200, 60)]


def make(lengths=LENGTHS, **changes) -> LengthBatcher:
    return LengthBatcher(lengths, **({"frames_per_batch": 400, "seed": 1} | changes))


def epoch_of(batcher: LengthBatcher):
    return list(islice(batcher, len(batcher)))


def test_an_epoch_shows_every_clip_once():
    shown = [crop.index for plan in epoch_of(make()) for crop in plan.crops]
    assert sorted(shown) == list(range(len(LENGTHS)))


def test_batches_keep_the_budget_padding_included():
    for plan in islice(make(extra_frames=10), 50):
        assert (plan.num_frames + 10) * len(plan.crops) <= 400


def test_clips_of_like_length_meet():
    used = sum(crop.num_frames for plan in epoch_of(make()) for crop in plan.crops)
    padded = sum(plan.num_frames * len(plan.crops) for plan in epoch_of(make()))
    assert used / padded > 0.85


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
    first = list(islice(make(), 40))
    assert first == list(islice(make(), 40))
    assert first != list(islice(make(seed=2), 40))


def test_epochs_differ():
    batcher = make()
    assert epoch_of(batcher) != epoch_of(batcher)


@pytest.mark.parametrize("steps", [0, 1, 7, 40])
def test_a_resumed_sampler_goes_on_exactly(steps):
    batcher = make(max_frames=50)
    plans = list(islice(batcher, steps))
    state = plans[-1].state if plans else batcher.state_dict()
    other = make(max_frames=50)
    other.load_state_dict(json.loads(json.dumps(state)))
    assert list(islice(other, 30)) == list(islice(batcher, 30))


@pytest.mark.parametrize("change", [{"frames_per_batch": 300}, {"seed": 3}, {"max_frames": 50}])
def test_a_state_of_other_batches_is_refused(change):
    with pytest.raises(DatasetError, match="differ from those of the checkpoint"):
        make(**change).load_state_dict(make().state_dict())


def test_crops_start_anywhere_the_last_frame_included():
    batcher = make([12], max_frames=10)
    starts = {next(batcher).crops[0].start for _ in range(100)}
    assert starts == {0, 1, 2}


def test_short_clips_are_not_cropped():
    plan = next(make([8], max_frames=10))
    assert (plan.crops[0].start, plan.crops[0].num_frames) == (0, 8)


def test_one_clip_is_shown_again_every_epoch():
    batcher = make([20])
    assert [next(batcher).crops[0].index for _ in range(5)] == [0] * 5
    assert batcher.epoch == 5


def test_a_clip_beyond_the_budget_makes_a_batch_of_its_own():
    plans = epoch_of(make([500, 10, 12]))
    assert sorted(len(plan.crops) for plan in plans) == [1, 2]


@pytest.mark.parametrize("world", [2, 3, 50])
def test_processes_deal_out_what_one_process_takes(world):
    alone = [plan.crops for plan in islice(make(), world * 8)]
    ranks = [islice(make(rank=r, world_size=world), 8) for r in range(world)]
    dealt = [plan.crops for step in zip(*ranks, strict=True) for plan in step]
    assert dealt == alone


def test_processes_get_work_even_from_one_clip():
    plans = [next(make([9], rank=r, world_size=2)) for r in range(2)]
    assert [plan.crops[0].index for plan in plans] == [0, 0]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_resumed_process_goes_on_with_its_own_share(rank):
    batcher = make(rank=rank, world_size=3)
    state = list(islice(batcher, 9))[-1].state
    other = make(rank=rank, world_size=3)
    other.load_state_dict(json.loads(json.dumps(state)))
    assert list(islice(other, 9)) == list(islice(batcher, 9))


def test_an_empty_split_is_refused():
    with pytest.raises(DatasetError, match="no clips"):
        make([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames_per_batch": 0}, "frames_per_batch must be at least 1, got 0"),
        ({"max_frames": 0}, "max_frames must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, "rank must be below world_size 2, got 2"),
        ({"lengths": [3, 0]}, "got a length of 0"),
    ],
)
def test_numbers_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)
