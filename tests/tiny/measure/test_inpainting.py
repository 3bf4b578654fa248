"""Whether a region belongs to its surroundings."""

from __future__ import annotations

import torch

from sa3lora.tiny.measure.inpainting import auc_own_against_other, colour


def test_the_area_is_1_for_regions_like_their_own_and_half_for_any():
    near = torch.eye(6) * 3
    assert auc_own_against_other(near + 0.01, near) == 1.0
    assert auc_own_against_other(torch.zeros(6, 6), near) == 0.5


def test_colour_is_the_mean_spectrum_of_each_side():
    sound = 0.1 * torch.randn(3, 2, 16000, generator=torch.Generator().manual_seed(0))
    assert colour(sound).shape == (3, 128)
    torch.testing.assert_close(colour(sound).roll(1, 0), colour(sound.roll(1, 0)))
