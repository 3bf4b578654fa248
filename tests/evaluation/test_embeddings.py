from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sa3lora.errors import EvaluationError, ModelError
from sa3lora.evaluation.embeddings import (
    AudioPiece,
    cut_windows,
    embed_pieces,
    embed_prompts,
    load_embedder,
)


def spans(num_samples: int, *, window: int = 10, hop: int = 10) -> list[tuple[int, int]]:
    windows = cut_windows(torch.arange(float(num_samples)), num_samples=window, hop=hop)
    return [(int(w[0]), int(w[-1]) + 1) for w in windows]


def test_windows_follow_each_other_and_a_short_rest_is_left_out() -> None:
    assert spans(34) == [(0, 10), (10, 20), (20, 30)]


def test_half_a_window_left_over_gives_one_that_ends_with_the_piece() -> None:
    assert spans(35) == [(0, 10), (10, 20), (20, 30), (25, 35)]


def test_a_hop_makes_windows_overlap() -> None:
    assert spans(20, hop=5) == [(0, 10), (5, 15), (10, 20)]


@pytest.mark.parametrize("num_samples", [3, 10])
def test_a_piece_of_at_most_one_window_stays_whole(num_samples: int) -> None:
    assert spans(num_samples) == [(0, num_samples)]


def test_audio_that_is_not_mono_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mono \(N,\) with N > 0, got \(2, 5\)"):
        cut_windows(torch.zeros(2, 5), num_samples=10, hop=10)


def test_pieces_are_mixed_resampled_and_cut_to_the_models_window(embedder: Any) -> None:
    piece = AudioPiece("a", torch.randn(2, 8000) * 0.1, 4000)
    embedded = embed_pieces([piece], embedder)
    assert embedder.lengths == [1000, 1000]
    assert embedded.vectors.dtype == torch.float64
    assert embedded.num_windows == 2


def test_pieces_of_one_track_share_its_number(embedder: Any) -> None:
    pieces = [AudioPiece(name, torch.randn(1, 1500) * 0.1, 1000) for name in ("x", "y", "x")]
    embedded = embed_pieces(pieces, embedder)
    assert embedded.names == ("x", "y")
    assert embedded.tracks.tolist() == [0, 0, 1, 1, 0, 0]


def test_short_pieces_and_left_out_windows_are_counted(embedder: Any) -> None:
    long, short = torch.randn(1, 10_000), torch.randn(1, 300)
    pieces = [AudioPiece("long", long, 1000), AudioPiece("short", short, 1000)]
    embedded = embed_pieces(pieces, embedder, max_windows=3)
    assert embedded.num_windows == 4
    assert embedded.num_left_out == 7
    assert embedded.num_short == 1


def test_no_audio_is_an_error(embedder: Any) -> None:
    with pytest.raises(EvaluationError, match="no audio to embed"):
        embed_pieces([], embedder)


def test_an_embedding_that_is_not_finite_names_the_model(embedder: Any) -> None:
    broken = AudioPiece("x", torch.full((1, 1000), float("inf")), 1000)
    with pytest.raises(EvaluationError, match="stub gave an embedding that is not finite"):
        embed_pieces([broken], embedder)


def test_a_piece_that_the_model_refuses_is_named(embedder: Any) -> None:
    def refuse(windows: list[Tensor]) -> Tensor:
        raise ModelError("at least 0.5 s")

    embedder.embed_audio = refuse
    with pytest.raises(EvaluationError, match=r"click\.wav cannot be embedded: at least 0\.5 s"):
        embed_pieces([AudioPiece("click.wav", torch.ones(1, 9), 1000)], embedder)


def test_equal_prompts_are_embedded_once_and_keep_their_places(embedder: Any) -> None:
    rows = embed_prompts(["a", "bbb", "a"], embedder)
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])


def test_an_unknown_embedding_model_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="nope: no such embedding model"):
        load_embedder("nope")
