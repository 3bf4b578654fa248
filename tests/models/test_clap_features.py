"""What the small CLAP hears."""

from __future__ import annotations

import math

import torch

from sa3lora.models.clap_features import (
    FrameSettings,
    chroma_filters,
    log_bands,
    mel_filters,
    onset_periodicity,
    pitch_classes,
    power_frames,
)

SETTINGS = FrameSettings()


def _sine(hz, seconds=1.0):
    t = torch.arange(round(seconds * SETTINGS.sample_rate)) / SETTINGS.sample_rate
    return torch.sin(2 * math.pi * hz * t)[None]


def _power(audio):
    return power_frames(audio, n_fft=SETTINGS.n_fft, hop=SETTINGS.hop)


def test_frames_are_counted_by_centres_inside_the_sound():
    for num_samples in (1, 320, 321, 16000):
        frames = SETTINGS.num_frames(torch.tensor(num_samples))
        assert _power(torch.zeros(1, num_samples)).shape == (1, 513, int(frames))


def test_a_sine_peaks_in_the_band_around_its_frequency():
    filters = mel_filters(SETTINGS)
    assert filters.shape == (64, 513)
    bins = torch.linspace(0, 8000, 513)
    for hz in (200.0, 1000.0, 5000.0):
        band = int((filters @ _power(_sine(hz)))[0, :, 25].argmax())
        centre = float((filters[band] * bins).sum() / filters[band].sum())
        assert abs(centre / hz - 1) < 0.12


def test_silence_is_zero_in_every_feature():
    silence = torch.zeros(1, 16000)
    mel = log_bands(mel_filters(SETTINGS) @ _power(silence))
    assert not mel.any()
    mask = torch.ones(1, mel.shape[2], dtype=torch.bool)
    assert not onset_periodicity(mel, mask, lags=SETTINGS.lags).any()
    assert not pitch_classes(torch.zeros(1, 12, 10)).any()


def test_lags_cover_the_beats_of_70_to_160_bpm():
    periods = [lag * SETTINGS.hop / SETTINGS.sample_rate for lag in SETTINGS.lags]
    assert min(periods) <= 60 / 160 / 2
    assert max(periods) >= 2 * 60 / 70
    assert SETTINGS.num_pooled == 4 * len(periods) + 12


def test_clicks_every_half_second_correlate_at_half_a_second():
    audio = torch.zeros(1, 5 * 16000)
    audio[:, ::8000] = 1.0
    mel = log_bands(mel_filters(SETTINGS) @ _power(audio))
    mask = torch.ones(1, mel.shape[2], dtype=torch.bool)
    strength = onset_periodicity(mel, mask, lags=SETTINGS.lags).unflatten(1, (4, -1)).mean(dim=1)[0]
    best = SETTINGS.lags[int(strength[: len(SETTINGS.lags) * 2 // 3].argmax())]
    assert abs(best * SETTINGS.hop / 16000 - 0.5) < 0.03


def test_an_a_is_an_a_in_any_octave():
    filters = chroma_filters(SETTINGS)
    for hz in (220.0, 440.0, 880.0):
        fine = power_frames(_sine(hz), n_fft=4096, hop=SETTINGS.chroma_hop)
        classes = pitch_classes(filters @ fine.sqrt())[0]
        assert int(classes.argmax()) == 9
        assert abs(float(classes.norm()) - 1) < 1e-5
