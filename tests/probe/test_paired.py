from __future__ import annotations

import pytest
import torch

from sa3lora.probe import paired_difference


def test_every_track_weighs_the_same_whatever_its_number_of_tuples() -> None:
    base = torch.tensor([1.0, 1.0, 1.0, 3.0])
    result = paired_difference(base, base - 1.0, ["a", "a", "a", "b"])
    assert result.base == 2.0
    assert result.difference == -1.0
    assert (result.num_tracks, result.num_tuples) == (2, 4)


def test_a_constant_difference_has_an_interval_without_width() -> None:
    base = torch.rand(6)
    result = paired_difference(base, base + 0.25, list("aabbcc"))
    assert result.low == pytest.approx(0.25)
    assert result.high == pytest.approx(0.25)


def test_the_interval_holds_the_difference_and_is_the_same_every_time() -> None:
    base, adapter = torch.rand(20), torch.rand(20)
    tracks = [str(n // 2) for n in range(20)]
    first, again = (paired_difference(base, adapter, tracks) for _ in range(2))
    assert first == again
    assert first.low is not None
    assert first.high is not None
    assert first.low < first.difference < first.high


def test_the_interval_covers_the_true_difference_about_19_times_in_20() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(100):
        difference = torch.randn(12, generator=generator)
        result = paired_difference(torch.zeros(12), difference, [str(n) for n in range(12)])
        assert result.low is not None
        assert result.high is not None
        covered += result.low <= 0 <= result.high
    assert 85 <= covered <= 100


def test_one_track_gives_no_interval_and_says_so() -> None:
    result = paired_difference(torch.ones(3), torch.zeros(3), ["a"] * 3)
    assert result.low is None
    assert "one track, so no interval" in str(result)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="got 3, 2 and 3"):
        paired_difference(torch.ones(3), torch.ones(2), ["a"] * 3)
