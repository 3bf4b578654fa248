from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from sa3lora.models import ModelSource
from sa3lora.pipeline.inputs import check_regions, check_request, fit_audio


def test_one_of_each_is_spread_over_the_batch() -> None:
    request = check_request("a", "b", [1, 2.5, 3])
    assert request.prompts == ["a"] * 3
    assert request.negatives == ["b"] * 3
    assert request.durations_s == [1.0, 2.5, 3.0]
    assert check_request(["a", "b"], None, 4).durations_s == [4.0, 4.0]
    assert check_request("a", ["b", ""], 4).prompts == ["a", "a"]


@pytest.mark.parametrize(
    ("prompt", "negative", "duration", "told"),
    [
        (["a", "b"], None, [1, 2, 3], "2 prompts, 3 durations"),
        (["a", "b"], ["n"], 1, "2 prompts, 2 durations, 1 negative prompts"),
        ([], None, 1.0, "0 prompts"),
        (["a", "b", "c"], None, [1], "3 prompts, 1 durations"),
    ],
)
def test_lists_of_different_length_are_refused(
    prompt: list[str], negative: list[str] | None, duration: float | list[float], told: str
) -> None:
    with pytest.raises(ValueError, match=f"give one of each or equally many, got {told}"):
        check_request(prompt, negative, duration)


def test_regions_that_fit_pass() -> None:
    regions = [(0.0, 2.0), (5.0, 10.0)]
    assert check_regions(regions, duration_s=10.0, audio_s=12.0) == regions
    assert check_regions([(4.0, 10.0)], duration_s=10.0, audio_s=4.0) == [(4.0, 10.0)]
    # out of order and one beginning in the other
    check_regions([(6.0, 10.0), (4.0, 7.0)], duration_s=10.0, audio_s=4.5)


@pytest.mark.parametrize(
    ("regions", "audio_s", "message"),
    [
        ([(0.0, 2.0)], None, "give inpaint_audio"),
        ([(2.0, 2.0)], 10.0, "0 <= start < end, got 2 to 2 s"),
        ([(-1.0, 2.0)], 10.0, "got -1 to 2 s"),
        ([(8.0, 11.0)], 12.0, "8 to 11 s reaches beyond the duration of 10 s"),
        ([(1.0, 2.0)], 8.0, "audio ends at 8 s and no region covers 8 to 10 s"),
        ([(9.0, 10.0)], 8.0, "no region covers 8 to 10 s"),
        ([(7.0, 9.0)], 8.0, "no region covers 9 to 10 s"),
    ],
)
def test_regions_that_do_not_fit_are_refused(
    regions: list[tuple[float, float]], audio_s: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_regions(regions, duration_s=10.0, audio_s=audio_s)


def test_mono_fills_both_channels(source: ModelSource) -> None:
    mono = torch.randn(1, 50)
    fitted = fit_audio((mono, source.config.sample_rate), source.config, num_samples=50)
    assert torch.equal(fitted, mono.expand(2, -1)[None])


def test_long_audio_is_cut_and_short_audio_followed_by_silence(source: ModelSource) -> None:
    audio = torch.randn(2, 50)
    rate = source.config.sample_rate
    assert torch.equal(fit_audio((audio, rate), source.config, num_samples=30)[0], audio[:, :30])
    long = fit_audio((audio, rate), source.config, num_samples=70)[0]
    assert torch.equal(long[:, :50], audio)
    assert long[:, 50:].count_nonzero() == 0


def test_other_rates_keep_their_pitch(source: ModelSource) -> None:
    rate = source.config.sample_rate
    place = torch.arange(3 * rate) / (3 * rate)
    given = torch.sin(2 * torch.pi * 200 * place).expand(2, -1)
    fitted = fit_audio((given, 3 * rate), source.config, num_samples=rate)[0]
    expected = torch.sin(2 * torch.pi * 200 * torch.arange(rate) / rate)
    inside = slice(200, -200)
    assert_close(fitted[0, inside], expected[inside], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (torch.zeros(50), r"must be \(channels, samples\), got \(50,\)"),
        (torch.zeros(2, 0), r"got \(2, 0\)"),
        (torch.full((2, 5), torch.nan), "values that are not finite"),
    ],
)
def test_audio_that_cannot_be_used_is_refused(
    source: ModelSource, wave: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_audio((wave, 8000), source.config, num_samples=10)
