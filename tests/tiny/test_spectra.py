"""Spectra with a full scale."""

from __future__ import annotations

import math

import torch

from sa3lora.tiny.spectra import log_mel, magnitudes


def test_a_full_scale_sine_has_magnitude_1():
    t = torch.arange(16000) / 16000
    sine = torch.sin(2 * math.pi * 1000 * t)[None, None]
    assert abs(float(magnitudes(sine, 1024)[0, 64, 10]) - 1) < 1e-3


def test_silence_lies_at_the_floor():
    silent = magnitudes(torch.zeros(2, 2, 4000), 512)
    logs = log_mel(silent, 64, floor=1e-3)
    assert logs.shape == (4, 64, 32)
    torch.testing.assert_close(logs, torch.full_like(logs, math.log(1e-3)), atol=2e-3, rtol=0)
