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


# Frames a second of the medium model's latents.
RATE = 44100 / 4096
MIXED = [int(np.ceil(RATE * s)) for s in (5, 8, 11, 380)] + [
    int(np.ceil(RATE * s))
    for s in np.minimum(380, 5 + np.random.default_rng(0).exponential(20, 400))
]


def waste(plans) -> float:
    return 1 - sum(p.num_real for p in plans) / sum(p.num_slots for p in plans)


def test_a_mixed_set_wastes_little_padded_and_nothing_packed():
    settings = {"frames_per_batch": 4096, "max_frames": 4096, "silence_frames": 4 * RATE}
    padded = waste(epoch_of(make(MIXED, **settings)))
    packed = waste(epoch_of(make(MIXED, **settings, packed=True)))
    to_the_maximum = 1 - sum(MIXED) / (4096 * len(MIXED))
    print(
        f"5 s to 380 s at medium's rate: {padded:.1%} padding by length, {packed:.1%} packed, "
        f"{to_the_maximum:.1%} padded to the maximum"
    )
    assert padded < 0.10
    assert packed < 0.02
    assert to_the_maximum > 0.90


def test_packed_batches_keep_the_budget_and_hold_more_clips():
    settings = {"frames_per_batch": 600, "silence_frames": 20}
    plans = list(islice(make(**settings, packed=True), 100))
    assert all(plan.num_slots <= 600 for plan in plans)
    assert len(make(**settings, packed=True)) < len(make(**settings))


def test_silence_is_a_floored_exponential_within_the_limit():
    batcher = make([10] * 4000, frames_per_batch=10**6, max_frames=500, silence_frames=43.0)
    silence = np.array([crop.silence_frames for crop in next(batcher).crops])
    # mean of the floor of an exponential: 1 / (e^(1 / mean) - 1), and about 1 / sqrt(n) of error
    assert silence.mean() == pytest.approx(1 / (np.exp(1 / 43) - 1), rel=0.07)
    assert (silence >= 43).mean() == pytest.approx(np.exp(-1), abs=0.04)
    for plan in islice(make(max_frames=50, silence_frames=43.0), 60):
        assert all(crop.total_frames <= 50 for crop in plan.crops)
        assert all(crop.silence_frames == 0 for crop in plan.crops if crop.num_frames == 50)


def test_silence_is_drawn_anew_each_epoch_and_none_draws_nothing():
    batcher = make(silence_frames=43.0)
    first, second = (
        {c.index: c.silence_frames for p in epoch_of(batcher) for c in p.crops} for _ in "ab"
    )
    assert first != second
    assert epoch_of(make(silence_frames=0.0)) == epoch_of(make())


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


@pytest.mark.parametrize(
    "change",
    [
        {"frames_per_batch": 300},
        {"seed": 3},
        {"max_frames": 50},
        {"packed": True},
        {"silence_frames": 9},
    ],
)
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


@pytest.mark.parametrize(("lengths", "world"), [(LENGTHS, 3), ([9, 12], 5)])
def test_every_process_knows_what_the_others_take_in_its_round(lengths, world):
    # The second set has so few batches that a round spans several epochs.
    ranks = [make(lengths, frames_per_batch=12, rank=r, world_size=world) for r in range(world)]
    for _ in range(8):
        rounds = [batcher.next_round() for batcher in ranks]
        for rank, (mine, batcher) in enumerate(zip(rounds, ranks, strict=True)):
            assert [plan.crops for plan in mine] == [plan.crops for plan in rounds[0]]
            assert mine[rank].state == batcher.state_dict()


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
