from __future__ import annotations

import pytest

from datasets_prep.segment import Segment, SegmentRule, segment_source, source_range
from sa3lora.errors import UsageError

RULE = SegmentRule(sample_rate=1000, ratio=10, segment_s=1.0, min_s=0.2, max_s=1.15)


def lengths(num_samples: int, rule: SegmentRule = RULE) -> list[int]:
    segments = segment_source(num_samples, rule=rule)
    end = 0
    for segment in segments:
        assert segment.start == end
        end += segment.num_samples
    assert end == (num_samples if segments else 0)
    return [segment.num_samples for segment in segments]


@pytest.mark.parametrize(
    ("num_samples", "expected"),
    [
        (9, []),  # below one latent
        (10, [10]),
        (777, [777]),  # natural length, not padded
        (1000, [1000]),
        (1100, [1100]),  # a short rest joins
        (1160, [580, 580]),  # too long joined for the model: shared
        (1200, [1000, 200]),
        (2000, [1000, 1000]),
        (2003, [1000, 1003]),
        (2199, [1000, 600, 599]),
        (3500, [1000, 1000, 1000, 500]),
    ],
)
def test_files_are_cut_without_loss(num_samples, expected):
    assert lengths(num_samples) == expected


def test_segments_begin_at_whole_latents():
    rule = SegmentRule(sample_rate=1000, ratio=64, segment_s=1.0, min_s=0.1, max_s=1.0)
    assert all(segment.start % 64 == 0 for segment in segment_source(9999, rule=rule))


def test_no_segment_is_longer_than_the_model_takes():
    for num_samples in range(10, 5000, 7):
        assert max(lengths(num_samples)) <= 1150


def test_a_rest_below_one_latent_never_stands_alone():
    rule = SegmentRule(sample_rate=1000, ratio=10, segment_s=1.0, min_s=0.0, max_s=1.0)
    assert min(lengths(1004, rule)) >= 10


def test_a_segment_is_found_in_the_samples_of_the_file():
    assert source_range(Segment(500, 250), rule=RULE, sample_rate=4000) == (2000, 3000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment_s": 0.001}, r"at least one latent \(0.010 s\), got 0.001"),
        ({"segment_s": 2.0}, r"at most the model's 1.15 s, got 2"),
        ({"min_s": 1.1}, r"between 0 and the segment's 1 s, got 1.1"),
    ],
)
def test_lengths_that_cannot_work_are_refused(change, message):
    values = {"sample_rate": 1000, "ratio": 10, "segment_s": 1.0, "min_s": 0.2, "max_s": 1.15}
    with pytest.raises(UsageError, match=message):
        SegmentRule(**(values | change)).check()
