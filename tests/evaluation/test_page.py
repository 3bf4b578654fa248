from __future__ import annotations

import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sa3lora.evaluation.bootstrap import Estimate
from sa3lora.evaluation.frechet import Extrapolation
from sa3lora.evaluation.page import render_page
from sa3lora.evaluation.plots import extrapolation_plot, interval_plot, pair_plot
from sa3lora.evaluation.result import AdapterUse, ClipPair, EvaluationResult, Settings
from sa3lora.evaluation.scores import Context, Score

NASTY = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """Collect tags and what they point at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.fixture
def result() -> EvaluationResult:
    context = Context("stub", 5.0, 2, 2, 2, NASTY, "ab" * 32, 9, 3)
    gap = Estimate(-1.0, -2.0, 0.5, 2)
    side = Estimate(3.0, 2.0, 4.0, 2)
    line = Extrapolation(1.5, 0.9, (4, 8, 8), (3.0, 2.0, 2.2))
    return EvaluationResult(
        model=NASTY,
        adapters=(AdapterUse(f"runs/{NASTY}/a.safetensors", 0.5, "cd" * 32),),
        settings=Settings(2, 5.0, 7, None, None),
        scores=(
            Score("fad", "FAD", "lower", side, side, gap, context),
            Score("change", "Change", "neither", None, Estimate(0.1, None, None, 1), None, context),
        ),
        clips=(ClipPair(NASTY, 7, "base/000.wav", "adapter/000.wav", 0.1, 0.2),),
        extrapolations={"base": line, "adapter": line},
        notes=(NASTY,),
        folder=Path("out"),
    )


def test_nothing_from_outside_becomes_markup(result: EvaluationResult) -> None:
    text = render_page(result)
    assert NASTY not in text
    assert "script" not in Page(text).tags


def test_the_page_refers_to_its_own_files_and_nothing_else(result: EvaluationResult) -> None:
    page = Page(render_page(result))
    assert page.links == ["base/000.wav", "base/000.png", "adapter/000.wav", "adapter/000.png"]
    assert page.tags.count("audio") == 2


def test_every_score_stands_beside_what_it_was_measured_with(result: EvaluationResult) -> None:
    text = render_page(result)
    rows = text.split("<table>")[1].split("</table>")[0].split("<tr>")[2:]
    assert len(rows) == 2
    for row in rows:
        assert "stub, 5 s windows, n = 2" in row
        assert "abababababab (9 windows of 3 tracks)" in row
    assert "FAD cannot tell adapter and base apart" in text


def test_plots_are_whole_svg_inside_their_frame() -> None:
    line = Extrapolation(1.5, 0.9, (4, 8, 8), (3.0, 2.0, 2.2))
    plots = [
        interval_plot([(NASTY, Estimate(1.0, -2.0, 5.0, 9))]),
        pair_plot([(NASTY, 0.2, 0.4), ("b", 0.3, 0.1)]),
        extrapolation_plot({"base": line, "adapter": line}),
    ]
    for plot in plots:
        root = ET.fromstring(plot)
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        dots = list(root.iter("circle"))
        assert dots
        for dot in dots:
            assert 0 <= float(dot.attrib["cx"]) <= width
            assert 0 <= float(dot.attrib["cy"]) <= height


def test_equal_values_still_make_a_plot() -> None:
    root = ET.fromstring(pair_plot([("a", 0.5, 0.5)]))
    assert len(list(root.iter("circle"))) == 2
