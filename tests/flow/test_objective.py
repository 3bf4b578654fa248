import pytest
import torch

from sa3lora.flow import (
    NORMALISATIONS,
    extend_mask,
    flow_loss,
    frame_mask,
    interpolate,
    masked_mse,
    pooled_mse,
    rescale_lengths,
    sample_dropout,
    velocity_target,
)

B, C, T = 3, 4, 10


def randn(seed, shape=(B, C, T)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masks():
    mask = frame_mask(torch.tensor([10, 6, 3]), T)
    keep = torch.zeros(B, T, dtype=torch.bool)
    keep[0, :4] = True
    keep[1, 2:5] = True
    return mask, keep


def test_the_path_runs_from_data_to_noise_at_the_target_velocity():
    data, noise = randn(0), randn(1)
    assert torch.equal(interpolate(data, noise, 0.0), data)
    assert torch.equal(interpolate(data, noise, torch.ones(B)), noise)
    early, late = (interpolate(data, noise, t) for t in (0.25, 0.75))
    torch.testing.assert_close((late - early) / 0.5, velocity_target(data, noise))


def test_each_item_has_its_own_time():
    data, noise, t = randn(0), randn(1), torch.tensor([0.1, 0.5, 0.9])
    mixed = interpolate(data, noise, t)
    for i in range(B):
        torch.testing.assert_close(mixed[i], (1 - t[i]) * data[i] + t[i] * noise[i])


def test_rescaled_lengths_round_up_and_stay_within_the_latents():
    # 5 of 8 source frames are 3.125 of 5 latent frames: 4
    lengths = rescale_lengths(torch.tensor([0, 5, 8, 9]), source_frames=8, num_frames=5)
    assert lengths.tolist() == [0, 4, 5, 5]


def test_silence_extension_adds_frames_and_never_takes_any():
    mask = frame_mask(torch.tensor([2, 5, 10]), T)
    longer = extend_mask(mask, mean_frames=3.0, generator=torch.Generator().manual_seed(0))
    assert longer.shape == mask.shape
    assert longer.dtype == torch.bool
    assert (longer >= mask).all()
    assert torch.equal(longer, frame_mask(longer.sum(dim=1), T)), "real frames stay in front"


def test_silence_extension_follows_a_floored_exponential():
    mean = 5.0
    mask = frame_mask(torch.zeros(20_000, dtype=torch.long), 200)
    extra = extend_mask(mask, mean_frames=mean, generator=torch.Generator().manual_seed(0)).sum(1)
    decay = torch.exp(torch.tensor(-1 / mean))
    # floor of an exponential is geometric: P(0) = 1 - e^(-1/mean), mean e^(-1/m) / (1 - e^(-1/m))
    assert (extra == 0).float().mean().item() == pytest.approx(1 - decay.item(), abs=0.01)
    expected = (decay / (1 - decay)).item()
    assert extra.float().mean().item() == pytest.approx(expected, abs=0.15)


def test_no_silence_extends_and_draws_nothing():
    mask, _ = masks()
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(extend_mask(mask, mean_frames=0, generator=generator), mask)
    assert torch.equal(generator.get_state(), before)


def test_negative_silence_is_refused():
    with pytest.raises(ValueError, match="0 or more, got -1"):
        extend_mask(masks()[0], mean_frames=-1, generator=torch.Generator())


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (0.1, 0.1), (1.0, 1.0)])
def test_dropout_takes_its_share_of_prompts(probability, share):
    generator = torch.Generator().manual_seed(0)
    dropped = sample_dropout(20_000, probability=probability, generator=generator)
    assert dropped.dtype == torch.bool
    assert dropped.float().mean().item() == pytest.approx(share, abs=0.01)


def test_loss_averages_per_item_over_made_and_given_frames():
    pred, target = randn(0), randn(1)
    mask, keep = masks()
    loss = flow_loss(pred, target, mask, keep, context_weight=0.5)
    error = (pred - target) ** 2
    # item 2 has nothing given: it counts as 0 in the mean over three items
    signal = [error[0, :, 4:].mean(), error[1, :, [0, 1, 5]].mean(), error[2, :, :3].mean()]
    context = [error[0, :, :4].mean(), error[1, :, 2:5].mean(), torch.tensor(0.0)]
    torch.testing.assert_close(loss.signal, torch.stack(signal).mean())
    torch.testing.assert_close(loss.context, torch.stack(context).mean())
    torch.testing.assert_close(loss.total, loss.signal + 0.5 * loss.context)
    torch.testing.assert_close(loss.per_item, torch.stack(signal) + 0.5 * torch.stack(context))


def test_an_item_with_everything_given_adds_nothing_to_the_signal():
    pred, target = randn(0), randn(1)
    mask, keep = masks()
    keep[0] = True
    loss = flow_loss(pred, target, mask, keep, context_weight=0.0)
    assert loss.per_item[0] == 0
    torch.testing.assert_close(loss.total, loss.per_item[1:].sum() / B)


def test_an_empty_clip_adds_nothing_and_stays_finite():
    pred, target = randn(0), randn(1)
    mask, keep = masks()
    mask[1] = False
    for normalisation in NORMALISATIONS:
        loss = flow_loss(pred, target, mask, keep, normalisation=normalisation)
        assert loss.per_item[1] == 0
        assert torch.isfinite(loss.per_item).all()


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("filling", [1e6, float("nan"), float("inf")])
def test_values_in_padding_change_no_bit_of_loss_or_gradient(normalisation, filling):
    mask, keep = masks()

    def run(padding):
        pred, target = randn(0), randn(1)
        if padding is not None:
            for x in (pred, target):
                x.masked_fill_(~mask[:, None, :], padding)
        pred.requires_grad_()
        loss = flow_loss(pred, target, mask, keep, normalisation=normalisation)
        loss.total.backward()
        return loss, pred.grad

    (clean, clean_grad), (filled, filled_grad) = run(None), run(filling)
    for term in ("total", "signal", "context", "per_item"):
        assert torch.equal(getattr(clean, term), getattr(filled, term))
    assert torch.equal(clean_grad, filled_grad)
    assert not filled_grad[~mask[:, None, :].expand(B, C, T)].any()


def test_a_keep_mask_on_padding_changes_nothing():
    pred, target = randn(0), randn(1)
    mask, keep = masks()
    assert torch.equal(
        flow_loss(pred, target, mask, keep).total,
        flow_loss(pred, target, mask, keep | ~mask).total,
    )


@pytest.mark.parametrize("normalisation", NORMALISATIONS[1:])
def test_normalised_signal_does_not_depend_on_the_scale_of_the_data(normalisation):
    pred, target = randn(0), randn(1)
    mask, keep = masks()
    once, thrice = (
        flow_loss(k * pred, k * target, mask, keep, normalisation=normalisation) for k in (1.0, 3.0)
    )
    torch.testing.assert_close(once.signal, thrice.signal, rtol=1e-3, atol=0)
    torch.testing.assert_close(thrice.context, 9 * once.context)


def test_normalisation_divides_by_the_variance_of_its_own_axes():
    pred, target = randn(0), randn(1)
    mask, keep = torch.ones(B, T, dtype=torch.bool), torch.zeros(B, T, dtype=torch.bool)
    error = (pred - target) ** 2
    for normalisation, dims in {"timestep": 1, "sample": (1, 2), "sample_channel": 2}.items():
        variance = target.var(dim=dims, keepdim=True, unbiased=False) + 1e-6
        got = flow_loss(pred, target, mask, keep, normalisation=normalisation).signal
        torch.testing.assert_close(got, (error / variance).mean())


def test_normalisation_sends_no_gradient_through_the_target():
    target = randn(1).requires_grad_()
    mask, keep = masks()
    flow_loss(target.detach() + 1, target, mask, keep, normalisation="sample").signal.backward()
    # the difference is 1 everywhere, so only a variance could tell the entries of an item apart
    made = target.grad[0, :, 4:]
    torch.testing.assert_close(made, made[0, 0].expand_as(made))


def test_per_item_mean_and_pooled_mean_weigh_lengths_differently():
    pred, target = torch.zeros(2, C, T), torch.zeros(2, C, T)
    pred[1] = 1.0
    mask = frame_mask(torch.tensor([9, 1]), T)
    assert masked_mse(pred, target, mask).item() == pytest.approx(0.5)
    assert pooled_mse(pred, target, mask).item() == pytest.approx(0.1)


def test_half_precision_is_summed_in_float32():
    pred, target = randn(0).bfloat16(), randn(1).bfloat16()
    mask, keep = masks()
    half = flow_loss(pred, target, mask, keep)
    assert half.total.dtype == torch.float32
    assert torch.equal(half.total, flow_loss(pred.float(), target.float(), mask, keep).total)


def test_a_mask_of_another_length_is_refused():
    _, keep = masks()
    with pytest.raises(ValueError, match=r"\(3, 10\), got \(3, 7\)"):
        flow_loss(randn(0), randn(1), torch.ones(3, 7, dtype=torch.bool), keep[:, :7])


def test_a_target_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 4, 10\), got \(3, 4, 9\)"):
        flow_loss(randn(0), randn(1)[..., :9], *masks())


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match=r"none, timestep, sample, sample_channel, got 'batch'"):
        flow_loss(randn(0), randn(1), *masks(), normalisation="batch")
