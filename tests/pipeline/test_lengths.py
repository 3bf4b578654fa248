from __future__ import annotations

import dataclasses

import pytest
import torch

from sa3lora.models.config import ModelConfig
from sa3lora.models.config_parse import parse_config
from sa3lora.models.fixtures import released_config
from sa3lora.pipeline.lengths import plan_lengths


@pytest.fixture(scope="module")
def small() -> ModelConfig:
    return parse_config(released_config("small-music"))


@pytest.fixture(scope="module")
def medium() -> ModelConfig:
    return parse_config(released_config("medium"))


# model specification, section 6.2
@pytest.mark.parametrize(
    ("seconds", "samples", "frames", "effective", "valid"),
    [
        (0.5, 286720, 70, 6, 70),
        (5, 491520, 120, 54, 118),
        (10, 712704, 174, 108, 172),
        (30, 1589248, 388, 323, 387),
        (120, 5292032, 1292, 1292, 1292),
    ],
)
def test_the_published_lengths(
    small: ModelConfig, seconds: float, samples: int, frames: int, effective: int, valid: int
) -> None:
    lengths = plan_lengths([seconds], small)
    assert (lengths.num_samples, lengths.num_frames) == (samples, frames)
    assert lengths.effective.tolist() == [effective]
    assert lengths.mask.sum().item() == valid
    assert lengths.mask[0, :valid].all()


def test_the_published_length_of_380_s(medium: ModelConfig) -> None:
    lengths = plan_lengths([380], medium)
    assert (lengths.num_samples, lengths.num_frames) == (16777216, 4096)
    assert lengths.effective.tolist() == [4092]
    assert lengths.mask.all()


def test_the_longest_clip_decides_what_is_computed(small: ModelConfig) -> None:
    lengths = plan_lengths([5, 30], small)
    assert lengths.num_frames == 388
    assert lengths.mask.sum(dim=1).tolist() == [118, 387]
    assert lengths.effective.dtype == torch.float32
    assert [lengths.cut(i, 44100) for i in (0, 1)] == [220500, 1323000]


def test_without_headroom_nothing_is_added_but_the_rounding(small: ModelConfig) -> None:
    lengths = plan_lengths([5], small, headroom_s=0)
    assert lengths.num_frames == 54
    assert lengths.mask.all()


def test_the_sample_size_never_caps_a_duration_that_is_allowed(medium: ModelConfig) -> None:
    longest = medium.max_duration_s
    assert plan_lengths([longest], medium).cut(0, 44100) == 16777216
    capped = dataclasses.replace(medium, sample_size=5292032)
    with pytest.raises(ValueError, match=r"at most 120\.00 s for this model, got 380"):
        plan_lengths([380], capped)


@pytest.mark.parametrize("seconds", [0, -1, 121, float("nan"), float("inf"), 1e-6])
def test_durations_out_of_range_are_refused(small: ModelConfig, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"above 0 and at most 120\.00 s for this model"):
        plan_lengths([10, seconds], small)
