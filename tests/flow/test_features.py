import math

import pytest
import torch

from sa3lora.flow import expo_fourier_features


def test_features_match_the_published_check_values():
    # spec of the released models: dim 256 at t = 0.5, and at 30 of 384 seconds
    features = expo_fourier_features(torch.tensor([0.5, 30 / 384]), 256)
    expected = torch.tensor(
        [
            [-4.37e-8, -0.1270493, -0.2620241, 1.0, 0.9918964, 0.9650613],
            [0.9700313, 0.9650028, 0.9591365, 0.2429802, 0.2622395, 0.2829436],
        ]
    )
    got = torch.cat([features[:, :3], features[:, 128:131]], dim=1)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_frequencies_run_from_one_half_to_ten_thousand():
    x = 1e-5
    features = expo_fourier_features(torch.tensor([x]), 64)
    angles = torch.atan2(features[0, 32:], features[0, :32])
    assert angles[0].item() == pytest.approx(2 * math.pi * 0.5 * x, rel=1e-4)
    assert angles[-1].item() == pytest.approx(2 * math.pi * 10_000 * x, rel=1e-4)


def test_features_stay_float32_for_a_half_precision_scalar():
    features = expo_fourier_features(torch.tensor([0.5], dtype=torch.bfloat16), 8)
    assert features.dtype == torch.float32
    assert torch.equal(features, expo_fourier_features(torch.tensor([0.5]), 8))


@pytest.mark.parametrize("dim", [7, 2])
def test_a_width_that_cannot_be_halved_is_refused(dim):
    with pytest.raises(ValueError, match=f"even number of at least 4, got {dim}"):
        expo_fourier_features(torch.zeros(1), dim)
