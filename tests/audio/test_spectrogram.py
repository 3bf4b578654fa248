from __future__ import annotations

import io
import warnings

import pytest
import torch
from librosa import mel_frequencies
from matplotlib.image import imread
from torch import Tensor

from sa3lora.audio import spectrogram_png
from sa3lora.audio.spectrogram import mel_levels


def _tone(hz: float, rate: int, seconds: float = 1.0, *, channels: int = 2) -> Tensor:
    time = torch.arange(round(rate * seconds)) / rate
    return torch.sin(2 * torch.pi * hz * time).expand(channels, -1)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("hz", [110.0, 440.0, 3000.0])
def test_a_full_scale_tone_is_at_its_frequency_and_at_0_db(hz: float, rate: int) -> None:
    levels = mel_levels(_tone(hz, rate), rate)
    middle = levels[:, levels.shape[1] // 2]
    centres = torch.from_numpy(mel_frequencies(128 + 2, fmin=0.0, fmax=rate / 2))[1:-1]
    nearest = int((centres - hz).abs().argmin())
    assert abs(int(middle.argmax()) - nearest) <= 1
    assert float(middle.max()) == pytest.approx(0.0, abs=2.5)  # a Hann window leaks into 2 bins


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 32000, 44100, 48000])
def test_no_band_is_empty(rate: int) -> None:
    noise = torch.randn(1, rate, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mel_levels(noise * 0.1, rate).min() > -80


def test_levels_are_absolute_and_silence_is_the_floor() -> None:
    tone = _tone(1000, 16000)
    loud, quiet = (mel_levels(each, 16000) for each in (tone, tone * 0.1))
    assert float(loud.max() - quiet.max()) == pytest.approx(20.0, abs=0.01)
    assert mel_levels(torch.zeros(2, 16000), 16000).unique().tolist() == [-90.0]


def test_channels_of_opposite_phase_do_not_cancel() -> None:
    one = _tone(500, 16000, channels=1)
    torch.testing.assert_close(mel_levels(torch.cat([one, -one]), 16000), mel_levels(one, 16000))


def test_the_shortest_sound_in_a_long_clip_is_seen_where_it_is() -> None:
    audio = torch.zeros(1, 16000 * 60)
    audio[0, 16000 * 45 : 16000 * 45 + 200] = _tone(1000, 16000)[0, :200]
    levels = mel_levels(audio, 16000, columns=100)
    assert levels.shape == (128, 100)
    assert int(levels.max(dim=0).values.argmax()) == pytest.approx(75, abs=1)
    assert float(levels[:, :70].max()) == -90.0


@pytest.mark.parametrize("num_samples", [1, 700, 16000, 16000 * 47])
def test_pictures_of_any_length_have_one_size_and_brightness_means_level(num_samples: int) -> None:
    def brightness(audio: Tensor) -> float:
        picture = imread(io.BytesIO(spectrogram_png(audio, 16000)))
        assert picture.shape[:2] == (300, 800)
        return float(picture[60:200, 150:600, :3].mean())

    noise = torch.randn(2, num_samples, generator=torch.Generator().manual_seed(0)) * 0.1
    silent, soft, loud = (brightness(noise * gain) for gain in (0.0, 0.1, 1.0))
    assert silent < 0.01
    assert silent < soft < loud
