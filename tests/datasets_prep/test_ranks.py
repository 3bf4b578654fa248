from __future__ import annotations

import pytest

from datasets_prep.ranks import Ranks
from sa3lora.errors import DatasetError

COSTS = [9.0, 1.0, 1.0, 5.0, 4.0, 1.0, 3.0]


def test_every_item_has_one_process_and_keeps_its_order():
    parts = [Ranks(r, 3).share(COSTS, cost=float) for r in range(3)]
    assert sorted(c for part in parts for c in part) == sorted(COSTS)
    indices = [Ranks(r, 3).share(range(7), cost=lambda n: COSTS[n]) for r in range(3)]
    assert all(part == sorted(part) for part in indices)


def test_the_work_is_about_equal():
    loads = [sum(Ranks(r, 3).share(COSTS, cost=float)) for r in range(3)]
    assert max(loads) <= 9.0


def test_one_process_talks_to_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks.current()
    assert (ranks.rank, ranks.world_size) == (0, 1)
    assert ranks.gather("x") == ["x"]
    assert ranks.first(lambda: 3) == 3


def test_a_failure_is_raised():
    with pytest.raises(DatasetError, match="broken"):
        Ranks().check(DatasetError("broken"))
    Ranks().check(None)
