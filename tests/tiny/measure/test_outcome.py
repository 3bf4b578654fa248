"""Numbers against their bars."""

from __future__ import annotations

from sa3lora.tiny.measure.outcome import ceiling, fact, floor


def test_a_ceiling_and_a_floor_are_met_from_the_right_side():
    assert ceiling("x", 0.3, 0.3, conditions="").is_met
    assert not ceiling("x", 0.31, 0.3, conditions="").is_met
    assert floor("x", 0.3, 0.3, conditions="").is_met
    assert not floor("x", 0.29, 0.3, conditions="").is_met
    assert not floor("x", float("nan"), 0.3, conditions="").is_met


def test_a_row_tells_the_bar_and_the_verdict():
    assert ceiling("loss", 0.5, 0.3, conditions="8 pieces").row == [
        "loss",
        "0.5",
        "at most 0.3",
        "no",
        "8 pieces",
    ]
    assert fact("loss", 0.5, conditions="8 pieces").row == ["loss", "0.5", "", "", "8 pieces"]
