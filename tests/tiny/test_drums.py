"""The drum kit."""

from __future__ import annotations

import numpy as np
import pytest

from sa3lora.tiny.drums import CLOSED_HAT, KICK, LENGTH_S, render_drum


@pytest.mark.parametrize("number", list(LENGTH_S))
def test_a_stroke_is_heard_at_once_and_dies_away(number):
    sound = render_drum(number, velocity=1.0, sample_rate=16000)
    assert sound.shape == (round(LENGTH_S[number] * 16000),)
    assert np.abs(sound[: sound.size // 3]).max() > 0.15
    assert np.abs(sound[-4:]).max() < 0.01


def test_the_kick_is_low_and_the_hat_is_high():
    def centre(number):
        power = np.abs(np.fft.rfft(render_drum(number, velocity=1.0, sample_rate=16000), 8000))
        return (np.arange(power.size) * power).sum() / power.sum() * 2

    assert centre(KICK) < 500
    assert centre(CLOSED_HAT) > 3000


def test_velocity_scales_a_stroke():
    loud, soft = (render_drum(KICK, velocity=v, sample_rate=16000) for v in (1.0, 0.5))
    np.testing.assert_allclose(soft, 0.5 * loud, rtol=1e-6)
