import math

import pytest
import torch

from sa3lora.flow import (
    SAMPLING_DEFAULT,
    effective_length,
    shift,
    shift_flux,
    shift_full,
    shift_logsnr,
)

GRID = torch.linspace(0, 1, 21)


def test_full_shift_has_the_published_alphas():
    # spec of the released training objective: alpha of "full" with its defaults
    table = {
        100: 1.64872,
        256: 1.64872,
        512: 1.72174,
        1024: 1.87761,
        1300: 1.96741,
        2048: 2.23297,
        3072: 2.65559,
        4096: 3.15819,
        9000: 3.15819,
    }
    half = shift_full(torch.tensor(0.5), torch.tensor(list(table), dtype=torch.float32))
    torch.testing.assert_close(
        half / (1 - half), torch.tensor(list(table.values())), rtol=1e-5, atol=0
    )


def test_full_shift_equals_its_other_published_form():
    # the sampling code writes it as 1 - e^mu / (e^mu + 1 / (1 - t) - 1)
    t = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    mu = -(0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256))
    other = 1 - math.exp(mu) / (math.exp(mu) + 1 / (1 - t) - 1)
    torch.testing.assert_close(shift_full(t, 1024), other)


def test_sine_bends_the_full_shift():
    torch.testing.assert_close(
        shift_full(GRID, 512, use_sine=True), torch.sin(math.pi / 2 * shift_full(GRID, 512))
    )


def test_flux_shift_interpolates_alpha_in_the_logarithm_of_the_length():
    options = {"min_length": 100, "max_length": 10_000, "alpha_min": 1.0, "alpha_max": 4.0}
    for length, alpha in {10: 1.0, 100: 1.0, 1000: 2.0, 10_000: 4.0, 90_000: 4.0}.items():
        half = shift_flux(torch.tensor(0.5), length, **options)
        assert (half / (1 - half)).item() == pytest.approx(alpha, rel=1e-5)


def test_flux_shift_is_the_identity_by_default():
    torch.testing.assert_close(shift_flux(GRID, 777), GRID)


def test_logsnr_shift_is_linear_in_log_snr_and_moves_with_the_length():
    t = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    for length, start in {2000: -6.2, 4000: -7.2, 500: -4.2}.items():
        warped = shift_logsnr(t, length)
        torch.testing.assert_close(torch.log((1 - warped) / warped), 2 - t * (2 - start))


def test_logsnr_shift_pins_both_ends():
    warped = shift_logsnr(torch.tensor([-0.1, 0.0, 1.0, 1.1]), 300)
    assert torch.equal(warped, torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_sampling_default_ignores_the_length():
    short, long = (shift(GRID, length, options=SAMPLING_DEFAULT) for length in (10, 4096))
    assert torch.equal(short, long)


@pytest.mark.parametrize("kind", ["full", "flux", "logsnr"])
def test_every_shift_rises_and_keeps_both_ends(kind):
    warped = shift(GRID, 1000, options={"type": kind})
    assert (warped.diff() > 0).all()
    torch.testing.assert_close(warped[[0, -1]], torch.tensor([0.0, 1.0]))


def test_time_and_length_pair_item_by_item():
    t, length = torch.tensor([0.2, 0.6]), torch.tensor([300.0, 3000.0])
    both = shift(t, length, options={})
    for i in range(2):
        assert torch.equal(both[i], shift(t[i], length[i], options={}))


def test_options_without_a_type_mean_full():
    options = {"min_length": 8, "max_length": 128}
    assert torch.equal(
        shift(GRID, 50, options=options), shift_full(GRID, 50, min_length=8, max_length=128)
    )


@pytest.mark.parametrize("options", [None, {"type": "none"}])
def test_no_shift_leaves_time_alone(options):
    assert torch.equal(shift(GRID, 50, options=options), GRID)


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match=r"full, flux, logsnr, none, got 'cosine'"):
        shift(GRID, 50, options={"type": "cosine"})


def test_an_unknown_parameter_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'flux' has no parameter base_shift; .*alpha_max"):
        shift(GRID, 50, options={"type": "flux", "base_shift": 1.0})


def test_effective_length_rounds_samples_down_and_frames_up():
    # lengths of the released models at 44.1 kHz and 4096 samples a frame (inference spec)
    seconds = torch.tensor([0.5, 5, 10, 30, 120, 380], dtype=torch.float64)
    frames = effective_length(seconds, sample_rate=44_100, ratio=4096)
    assert torch.equal(frames, torch.tensor([6.0, 54.0, 108.0, 323.0, 1292.0, 4092.0]))
    # 8000.9 samples count as 8000: exactly 250 frames of 32, not 251
    almost = effective_length(torch.tensor([8000.9 / 8000]).double(), sample_rate=8000, ratio=32)
    assert almost.item() == 250
