from __future__ import annotations

import math

import pytest
import torch

from sa3lora.audio import resample, to_channels


def test_mono_is_repeated_and_surround_keeps_its_front() -> None:
    mono = torch.randn(1, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_channels(mono, 2), torch.cat([mono, mono]))
    six = torch.arange(12.0).reshape(6, 2)
    assert torch.equal(to_channels(six, 2), six[:2])


def test_one_channel_is_the_mean() -> None:
    audio = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert torch.equal(to_channels(audio, 1), torch.tensor([[2.0, 4.0]]))


def test_the_same_count_gives_back_the_same_audio() -> None:
    audio = torch.zeros(3, 4)
    assert to_channels(audio, 3) is audio


def test_a_count_nobody_defined_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot make 4 channels of 2"):
        to_channels(torch.zeros(2, 3), 4)


def test_a_repeated_channel_can_be_written_to() -> None:
    audio = to_channels(torch.zeros(1, 4), 2)
    audio[0, 0] = 1.0
    assert audio[1, 0] == 0.0


@pytest.mark.parametrize(("orig", "new"), [(44100, 16000), (8000, 44100), (48000, 44100)])
def test_a_tone_keeps_its_pitch_and_level_at_another_rate(orig: int, new: int) -> None:
    def tone(rate: int) -> torch.Tensor:
        return 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(rate) / rate).expand(2, -1)

    result = resample(tone(orig), orig, new)
    assert result.shape == (2, new)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result[:, 500:-500], tone(new)[:, 500:-500], atol=1e-3, rtol=0)


def test_what_the_new_rate_cannot_hold_is_gone() -> None:
    tone = torch.sin(2 * math.pi * 7000 * torch.arange(44100) / 44100)[None]
    assert resample(tone, 44100, 8000)[:, 500:-500].abs().max() < 1e-3


def test_equal_rates_change_nothing() -> None:
    audio = torch.zeros(2, 5)
    assert resample(audio, 16000, 16000) is audio
