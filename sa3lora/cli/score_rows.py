"""Rows of the table that `evaluate` and `demo` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sa3lora.evaluation.bootstrap import Estimate
    from sa3lora.evaluation.result import EvaluationResult
    from sa3lora.evaluation.scores import Score

HEADER = ("score", "base", "adapter", "difference", "95 % interval")


def score_rows(result: EvaluationResult) -> list[list[str]]:
    """Return one row a score, in the columns of `HEADER`."""
    return [_row(score) for score in result.scores]


def _row(score: Score) -> list[str]:
    gap = score.difference
    interval = "none"
    if gap is not None and gap.low is not None and gap.high is not None:
        interval = f"{gap.low:+.4g} to {gap.high:+.4g}"
    return [
        score.title,
        _value(score.base),
        _value(score.adapter),
        "" if gap is None else f"{gap.value:+.4g}",
        interval,
    ]


def _value(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.4g}"
