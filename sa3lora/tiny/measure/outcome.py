"""One measured number with the bar it has to meet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """A number, its bar, and how it was measured.

    Attributes:
        name: What was measured.
        value: The number.
        bar: What it has to reach; None for a number that only informs.
        low_is_good: Whether the bar is a ceiling.
        conditions: Pieces, seeds, settings: what one needs to measure it again.
    """

    name: str
    value: float
    bar: float | None
    low_is_good: bool
    conditions: str

    @property
    def is_met(self) -> bool:
        """Whether the bar is reached; true where there is none."""
        if self.bar is None:
            return True
        return self.value <= self.bar if self.low_is_good else self.value >= self.bar

    @property
    def row(self) -> list[str]:
        """Cells of a table: name, value, bar, verdict, conditions."""
        if self.bar is None:
            return [self.name, f"{self.value:.3g}", "", "", self.conditions]
        sign = "at most" if self.low_is_good else "at least"
        verdict = "yes" if self.is_met else "no"
        return [self.name, f"{self.value:.3g}", f"{sign} {self.bar:g}", verdict, self.conditions]


def ceiling(name: str, value: float, bar: float, *, conditions: str) -> Outcome:
    """Give a number that may be at most its bar."""
    return Outcome(name, float(value), bar, True, conditions)


def floor(name: str, value: float, bar: float, *, conditions: str) -> Outcome:
    """Give a number that must be at least its bar."""
    return Outcome(name, float(value), bar, False, conditions)


def fact(name: str, value: float, *, conditions: str) -> Outcome:
    """Give a number without a bar."""
    return Outcome(name, float(value), None, False, conditions)
