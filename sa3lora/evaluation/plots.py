"""Small plots as inline SVG text, without anything from outside the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from sa3lora.evaluation.bootstrap import Estimate
from sa3lora.evaluation.frechet import Extrapolation

_BASE_COLOUR, _ADAPTER_COLOUR, _GREY = "#6b7280", "#c2410c", "#9ca3af"


def interval_plot(estimates: Sequence[tuple[str, Estimate]], *, width: int = 320) -> str:
    """Draw values with their intervals, one row each, over a common axis with a line at 0.

    Args:
        estimates: Label and estimate of each row.
        width: Width in pixels.
    """
    points = [0.0]
    for _, estimate in estimates:
        points.append(estimate.value)
        points += [end for end in (estimate.low, estimate.high) if end is not None]
    scale = _Scale.around(points, start=8, end=width - 8)
    height = 22 * len(estimates) + 18
    parts = [_line(scale(0), 2, scale(0), height - 16, colour=_GREY, dash="3 3")]
    for row, (label, estimate) in enumerate(estimates):
        y = 12 + 22 * row
        low, high = estimate.low, estimate.high
        if low is not None and high is not None:
            parts.append(_line(scale(low), y, scale(high), y, colour=_ADAPTER_COLOUR, thick=2))
        parts.append(_dot(scale(estimate.value), y, colour=_ADAPTER_COLOUR, title=label))
    parts += [
        _text(8, height - 3, _number(scale.low)),
        _text(width - 8, height - 3, _number(scale.high), anchor="end"),
    ]
    return _svg(parts, width, height, label="differences with their 95 % intervals")


def pair_plot(pairs: Sequence[tuple[str, float, float]], *, width: int = 640) -> str:
    """Draw base and adapter of each clip as two dots joined by a line.

    Args:
        pairs: Label, value of the base, value of the adapter.
        width: Width in pixels.
    """
    scale = _Scale.around([v for _, base, adapter in pairs for v in (base, adapter)], 8, width - 8)
    height = 12 * len(pairs) + 26
    parts = []
    for row, (label, base, adapter) in enumerate(pairs):
        y = 10 + 12 * row
        parts.append(_line(scale(base), y, scale(adapter), y, colour=_GREY))
        parts.append(_dot(scale(base), y, colour=_BASE_COLOUR, title=f"base: {label}"))
        parts.append(_dot(scale(adapter), y, colour=_ADAPTER_COLOUR, title=f"adapter: {label}"))
    parts += [
        _text(8, height - 4, _number(scale.low)),
        _text(width - 8, height - 4, _number(scale.high), anchor="end"),
    ]
    return _svg(parts, width, height, label="score of each clip, base grey, adapter orange")


def extrapolation_plot(lines: dict[str, Extrapolation], *, width: int = 420) -> str:
    """Draw the distance against 1 / n with its line, down to 1 / n = 0."""
    height = 220
    across = _Scale.around(
        [0.0] + [1 / n for line in lines.values() for n in line.num_windows], 44, width - 12
    )
    values = [d for line in lines.values() for d in (*line.distances, line.value)]
    up = _Scale.around(values, start=height - 26, end=10)
    parts = []
    for name, line in lines.items():
        colour = _BASE_COLOUR if name == "base" else _ADAPTER_COLOUR
        for count, distance in zip(line.num_windows, line.distances, strict=True):
            title = f"{name}, {count} windows: {_number(distance)}"
            parts.append(_dot(across(1 / count), up(distance), colour=colour, title=title))
        # The fitted line goes through its limit and the centre of gravity of the points.
        x = sum(1 / n for n in line.num_windows) / len(line.num_windows)
        y = sum(line.distances) / len(line.distances)
        parts.append(_line(across(0), up(line.value), across(x), up(y), colour=colour, dash="4 3"))
    parts += [
        _text(2, up(up.high) + 8, _number(up.high)),
        _text(2, up(up.low), _number(up.low)),
        _text(across(0), height - 8, "n = infinity"),
        _text(width - 12, height - 8, f"n = {round(1 / across.high)}", anchor="end"),
    ]
    return _svg(parts, width, height, label="FAD against sample size")


class _Scale:
    """A linear map of values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = low, high
        self._start, self._step = start, (end - start) / (high - low)

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float) -> _Scale:
        low, high = min(values), max(values)
        if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
            low, high = low - 1, high + 1
        return cls(low, high, start, end)

    def __call__(self, value: float) -> float:
        return self._start + (value - self.low) * self._step


def _svg(parts: Sequence[str], width: int, height: int, *, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _line(
    x1: float, y1: float, x2: float, y2: float, *, colour: str, thick: float = 1, dash: str = ""
) -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{thick}"{dashed}/>'
    )


def _dot(x: float, y: float, *, colour: str, title: str) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"><title>{escape(title)}</title>'
        "</circle>"
    )


def _text(x: float, y: float, content: str, *, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" fill="currentColor" '
        f'text-anchor="{anchor}">{escape(content)}</text>'
    )


def _number(value: float) -> str:
    assert math.isfinite(value), "a plot has finite numbers only"
    return f"{value:.3g}"
