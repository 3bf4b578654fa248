from __future__ import annotations

from sa3lora.training.choice import Point, judge
from sa3lora.training.observer import overfitting_text, verdict_scalars

_KEPT = Point(10, (-0.2, -0.21, -0.19), (-0.2, -0.21, -0.22))
_LATER = [
    Point(20, (-0.1, -0.12, -0.1), (-0.4, -0.41, -0.4)),
    Point(30, (0.0, 0.02, 0.0), (-0.5, -0.51, -0.5)),
]


def test_the_warning_names_the_kept_step_the_first_bad_one_and_the_growth() -> None:
    verdict = judge([_KEPT, *_LATER])
    text = overfitting_text(verdict)
    assert text.startswith("overfitting since step 20")
    assert "Since step 10, which is kept, the gap between them grew by +0.50" in text
    assert "95 % interval" in text


def test_scalars_hold_the_gap_with_its_interval_and_growth_only_behind_the_kept_step() -> None:
    first = verdict_scalars(judge([_KEPT]))
    assert set(first) == {
        "fit/gap", "margins/gap_low", "margins/gap_high", "validation/chosen_step",
    }  # fmt: skip
    later = verdict_scalars(judge([_KEPT, *_LATER]))
    assert later["validation/chosen_step"] == 10.0
    assert later["margins/gap_growth_low"] > 0
    assert later["margins/gap_low"] < later["fit/gap"] < later["margins/gap_high"]


def test_without_held_out_clips_there_is_no_gap_to_show() -> None:
    assert verdict_scalars(judge([Point(10, (), (-0.1, -0.2))])) == {}
