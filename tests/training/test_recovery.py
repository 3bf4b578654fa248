from __future__ import annotations

import json

import pytest

from sa3lora.errors import DivergenceError
from sa3lora.training.recovery import LR_FACTOR, Recovery


def _failure(step: int = 7, clips: int = 2) -> DivergenceError:
    names = [f"take{n}" for n in range(clips)]
    return DivergenceError(f"step {step}: the loss is no number", step=step, clips=names)


def test_the_first_failure_lowers_the_rate_and_skips_the_clips_of_its_step() -> None:
    recovery = Recovery()
    recovery.require_chance(_failure(), saved_step=4)
    told = str(recovery.add(_failure(), back_to=4))
    assert "step 7: the loss is no number, from clips take0, take1" in told
    assert "Going on after step 4 with 0.5 of the learning rate" in told
    assert recovery.lr_factor == LR_FACTOR
    assert [recovery.attempt(step) for step in (6, 7, 8)] == [0, 1, 0]


def test_the_second_failure_ends_the_run_and_says_what_to_do() -> None:
    recovery = Recovery()
    recovery.add(_failure(), back_to=4)
    with pytest.raises(DivergenceError) as raised:
        recovery.require_chance(_failure(9, clips=11), saved_step=8)
    message = str(raised.value)
    assert "step 9: the loss is no number, from clips take0" in message
    assert "take7 and 3 more" in message
    assert "Step 7 failed too" in message
    assert "checkpoints up to step 8 are untouched" in message
    assert "--resume --allow-change optim.lr" in message


def test_what_happened_survives_a_checkpoint() -> None:
    recovery, other = Recovery(), Recovery()
    recovery.add(_failure(), back_to=4)
    other.load(json.loads(json.dumps(recovery.to_json())))
    assert other.to_json() == recovery.to_json()
    assert (other.lr_factor, other.attempt(7)) == (LR_FACTOR, 1)


def test_a_rate_that_the_user_chose_gives_another_chance_but_not_the_clips_back() -> None:
    recovery = Recovery()
    recovery.add(_failure(), back_to=4)
    recovery.pardon()
    recovery.require_chance(_failure(9), saved_step=8)
    assert (recovery.lr_factor, recovery.attempt(7)) == (1.0, 1)
