"""The model card against the shipped files: every part is measured again."""

from __future__ import annotations

from pathlib import Path

import pytest

from sa3lora.models.registry import TINY_FOLDER
from sa3lora.tiny.measure.__main__ import measure_parts

PARTS = ("reconstruction", "clap", "generation", "inpainting", "style", "speed")


def _verdicts() -> dict[str, str]:
    """Read name and verdict of each row of the card's table of measures."""
    card = (TINY_FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines()]
    return {row[0]: row[3] for row in rows if len(row) == 5}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_the_card_says_which_bars_are_met(part: str, tmp_path: Path) -> None:
    said = _verdicts()
    for outcome in measure_parts(TINY_FOLDER, tmp_path)[part]():
        assert outcome.name in said, f"{outcome.row} is not in the card"
        assert said[outcome.name] == outcome.row[3], outcome.row


def test_every_missed_bar_is_explained_in_the_card() -> None:
    card = (TINY_FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    missed = [name for name, verdict in _verdicts().items() if verdict == "no"]
    explanation = card.partition("## Bars that are missed")[2].partition("\n## ")[0]
    for name in missed:
        assert name in explanation, f"{name}: the card does not say what was tried"
