"""The left-out styles."""

from __future__ import annotations

import numpy as np
import pytest

from sa3lora.tiny.pieces import make_piece, pretraining_caption
from sa3lora.tiny.styles import STYLES


def test_there_are_at_least_four_styles():
    assert len(STYLES) >= 4


@pytest.mark.parametrize("style", list(STYLES))
def test_a_style_fills_its_length_in_stereo_and_dies_away(style):
    piece = make_piece(10_000_001, duration_s=6.0, style=style)
    assert piece.audio.shape == (2, 96000)
    assert np.isfinite(piece.audio).all()
    windows = piece.audio.reshape(2, 12, 8000).std(axis=(0, 2))
    assert windows[:10].min() > 0.004, "a hole of half a second"
    assert np.abs(piece.audio[:, -80:]).max() < 0.01
    assert piece.style == style
    assert f"Genre: {style}" in piece.caption


def test_no_word_of_a_style_occurs_in_pretraining_captions():
    words = {word for style in STYLES.values() for word in (*style.name.split(), *style.words)}
    text = " ".join(pretraining_caption(seed) for seed in range(600))
    assert not words & set(text.replace(",", " ").split())


def test_pieces_of_a_style_differ_and_are_reproducible():
    a, b, again = (make_piece(s, duration_s=3.0, style="echo dub").audio for s in (1, 2, 1))
    assert np.array_equal(a, again)
    assert not np.array_equal(a, b)


def test_every_part_of_a_style_is_named_as_an_instrument():
    for style in STYLES.values():
        score = style.write(np.random.default_rng(0), 12.0)
        assert {part.timbre for part in score.parts} == set(style.instruments)
