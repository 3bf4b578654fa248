import pytest
import torch

from sa3lora.flow import guided_velocity, is_active

SHAPE = (2, 4, 6)
SIGMA = torch.tensor([0.9, 0.3])


def randn(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def guided(*, scale=4.0, **options):
    return guided_velocity(
        randn(0),
        SIGMA,
        conditional=randn(1),
        unconditional=randn(2),
        guidance_scale=scale,
        **options,
    )


def denoised(velocity):
    return randn(0) - SIGMA[:, None, None] * velocity


def inner(a, b):
    return (a * b).sum(dim=(1, 2))


def test_scale_one_is_the_conditional_velocity():
    torch.testing.assert_close(guided(scale=1.0), randn(1))


def test_scale_zero_without_projection_is_the_unconditional_velocity():
    torch.testing.assert_close(guided(scale=0.0, apg_scale=0.0), randn(2))


def test_without_projection_guidance_extrapolates():
    expected = randn(2) + 4.0 * (randn(1) - randn(2))
    torch.testing.assert_close(guided(apg_scale=0.0), expected)


def test_projected_guidance_is_orthogonal_to_the_conditional_estimate():
    estimate = denoised(randn(1))
    change = denoised(guided()) - estimate
    torch.testing.assert_close(
        inner(change, estimate), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0
    )
    assert (inner(change, change) > 0.1).all()


def test_a_blend_lies_between_plain_and_projected_guidance():
    plain, projected = guided(apg_scale=0.0), guided(apg_scale=1.0)
    torch.testing.assert_close(guided(apg_scale=0.3), 0.3 * projected + 0.7 * plain)


def test_the_threshold_caps_long_guidance_and_leaves_short_guidance_alone():
    plain = denoised(guided(apg_scale=0.0, scale=2.0)) - denoised(randn(1))
    norms = plain.flatten(1).norm(dim=1)
    threshold = norms.mean().item()
    assert norms.min() < threshold < norms.max()
    capped = guided(apg_scale=0.0, scale=2.0, norm_threshold=threshold)
    change = denoised(capped) - denoised(randn(1))
    torch.testing.assert_close(change.flatten(1).norm(dim=1), norms.clamp(max=threshold))
    shorter = int(norms.argmin())
    torch.testing.assert_close(change[shorter], plain[shorter])


def test_full_rescale_restores_the_channel_deviation_of_the_conditional_velocity():
    rescaled = guided(scale_phi=1.0)
    torch.testing.assert_close(rescaled.std(dim=1), randn(1).std(dim=1))


def test_a_partial_rescale_is_a_blend():
    torch.testing.assert_close(
        guided(scale_phi=0.25), 0.25 * guided(scale_phi=1.0) + 0.75 * guided()
    )


@pytest.mark.parametrize("options", [{}, {"apg_scale": 0.5}, {"norm_threshold": 0.5}])
def test_a_padded_clip_is_guided_as_if_alone(options):
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    together = guided(mask=mask, **options)
    alone = guided_velocity(
        randn(0)[1:, :, :4],
        SIGMA[1:],
        conditional=randn(1)[1:, :, :4],
        unconditional=randn(2)[1:, :, :4],
        guidance_scale=4.0,
        **options,
    )
    torch.testing.assert_close(together[1:, :, :4], alone)


def test_a_mask_without_padding_changes_nothing():
    torch.testing.assert_close(guided(mask=torch.ones(2, 6, dtype=torch.bool)), guided())


def test_half_precision_latents_give_a_float32_velocity():
    half = guided_velocity(
        randn(0).half(),
        SIGMA,
        conditional=randn(1).half(),
        unconditional=randn(2).half(),
        guidance_scale=3.0,
    )
    assert half.dtype == torch.float32


def test_at_small_sigma_the_division_comes_last():
    # order of operations of the released code: the result sits on a grid of ulp(x) / sigma
    x, v = torch.full((1, 1, 1), 1.0), torch.full((1, 1, 1), 0.7)
    velocity = guided_velocity(
        x, torch.tensor([1e-5]), conditional=v, unconditional=v * 0, guidance_scale=3.0, apg_scale=0
    )
    steps_of_grid = velocity.double() * 1e-5 / 2**-24
    torch.testing.assert_close(steps_of_grid, steps_of_grid.round(), atol=1e-3, rtol=0)
    assert velocity.item() != pytest.approx(2.1, rel=1e-5)


@pytest.mark.parametrize(
    ("sigma", "interval", "scale", "expected"),
    [
        (0.5, (0.0, 1.0), 4.0, True),
        (0.5, (0.0, 1.0), 1.0, False),
        (0.5, (0.0, 0.5), 4.0, True),
        (0.5, (0.5, 1.0), 0.0, True),
        (0.51, (0.0, 0.5), 4.0, False),
        (0.49, (0.5, 1.0), 4.0, False),
    ],
)
def test_guidance_is_active_within_the_interval_unless_the_scale_is_one(
    sigma, interval, scale, expected
):
    assert is_active(sigma, interval, guidance_scale=scale) is expected


def test_the_first_item_of_a_batch_decides():
    assert is_active(torch.tensor([0.2, 0.9]), (0.0, 0.5), guidance_scale=2.0)
    assert not is_active(torch.tensor([0.9, 0.2]), (0.0, 0.5), guidance_scale=2.0)
