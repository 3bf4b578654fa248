from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sa3lora.runs import RunFolder, compare_runs, read_run

MakeRun = Callable[..., RunFolder]
Evaluate = Callable[[RunFolder, Any], None]


def test_only_what_differs_is_shown(make_run: MakeRun) -> None:
    first = read_run(make_run("one"))
    second = read_run(make_run("two", lr=0.5, difference=-0.2))
    found = {
        (each.part, each.name): (each.first, each.second) for each in compare_runs(first, second)
    }
    assert set(found) == {("recipe", "optim.lr"), ("scores", "validation difference")}
    assert found["recipe", "optim.lr"] == (0.0001, 0.5)
    assert compare_runs(first, first) == []


def test_other_data_and_missing_scores_are_differences(
    make_run: MakeRun, evaluate: Evaluate
) -> None:
    one, two = make_run("one"), make_run("two")
    two.write_manifest({**two.manifest(), "dataset": {"fingerprint": "e" * 64, "clips": 12}})
    evaluate(two, {"scores": [{"key": "fad", "difference": {"value": 1.0}}]})
    found = [(e.part, e.name, e.first) for e in compare_runs(read_run(one), read_run(two))]
    assert found == [("data", "fingerprint", "f" * 64), ("scores", "fad", None)]
