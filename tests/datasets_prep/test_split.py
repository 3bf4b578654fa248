from __future__ import annotations

from collections import Counter

import pytest

from datasets_prep.split import assign_splits, check_fractions
from sa3lora.errors import UsageError


def hashes(count: int) -> dict[str, str]:
    return {f"{n}.wav": f"hash {n}" for n in range(count)}


def count(total: int, validation: float = 0.1, test: float = 0.1) -> tuple[int, int, int]:
    found = Counter(assign_splits(hashes(total), validation=validation, test=test).values())
    return found["train"], found["validation"], found["test"]


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (1, (1, 0, 0)),
        (3, (3, 0, 0)),
        (4, (3, 1, 0)),
        (5, (4, 1, 0)),
        (8, (6, 1, 1)),
        (40, (32, 4, 4)),
    ],
)
def test_fractions_hold_and_small_sets_can_be_validated(total, expected):
    assert count(total) == expected


def test_a_fraction_of_0_takes_nothing():
    assert count(20, validation=0, test=0) == (20, 0, 0)


def test_something_is_always_left_to_train_on():
    for total in range(1, 12):
        assert count(total, validation=0.5, test=0.49)[0] >= 1


def test_names_and_order_do_not_matter():
    splits = assign_splits(hashes(20), validation=0.2, test=0.2)
    renamed = {f"x/{name}": audio for name, audio in reversed(hashes(20).items())}
    again = assign_splits(renamed, validation=0.2, test=0.2)
    assert {f"x/{name}": split for name, split in splits.items()} == again


def test_the_same_audio_is_on_one_side():
    doubled = hashes(30) | {f"copy {name}": audio for name, audio in hashes(30).items()}
    splits = assign_splits(doubled, validation=0.3, test=0.3)
    assert all(splits[name] == splits[f"copy {name}"] for name in hashes(30))


def test_a_new_file_moves_few_others():
    before = assign_splits(hashes(40), validation=0.1, test=0.1)
    after = assign_splits(hashes(41), validation=0.1, test=0.1)
    assert sum(before[name] != after[name] for name in before) <= 2


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0), (0, -0.1), (0.5, 0.5)])
def test_fractions_that_cannot_work_are_refused(validation, test):
    with pytest.raises(UsageError, match="at least 0 and together below 1"):
        check_fractions(validation, test)
