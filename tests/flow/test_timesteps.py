import pytest
import torch

from sa3lora.flow import TIMESTEP_LAWS, sample_timesteps, trunc_logit_normal_q


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_truncated_law_has_the_published_quantiles():
    # spec of the released training objective, table of quantiles of t
    p = torch.tensor(
        [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999], dtype=torch.float64
    )
    expected = torch.tensor(
        [0.0470, 0.0960, 0.1745, 0.2343, 0.3637, 0.5385, 0.7128, 0.8406, 0.8983, 0.9679, 0.9958]
    )
    t = 1 - trunc_logit_normal_q(torch.special.ndtri(1 - p))
    torch.testing.assert_close(t, expected, atol=5.1e-5, rtol=0)


def test_truncated_law_has_the_published_mean():
    # origin of 0.5377: spec of the released training objective
    t = sample_timesteps("trunc_logit_normal", 200_000, generator=generator())
    assert t.mean().item() == pytest.approx(0.5377, abs=2e-3)


def test_truncated_law_stays_in_the_unit_interval_for_extreme_normals():
    q = trunc_logit_normal_q(torch.tensor([-40.0, 40.0]))
    torch.testing.assert_close(q, torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)
    assert q.min() >= 0
    assert q.max() <= 1


def test_uniform_law_covers_every_stratum_of_a_batch():
    t = sample_timesteps("uniform", 64, generator=generator(3))
    counts = torch.histc(t, bins=64, min=0, max=1)
    assert torch.equal(counts, torch.ones(64)), "a Sobol batch of 64 puts one point in each 64th"


def test_uniform_law_differs_from_batch_to_batch():
    g = generator()
    first, second = (sample_timesteps("uniform", 8, generator=g) for _ in range(2))
    assert not torch.equal(first, second)


def test_logit_normal_law_has_its_median_and_quartiles():
    t = sample_timesteps("logit_normal", 100_000, generator=generator())
    got = torch.quantile(t, torch.tensor([0.25, 0.5, 0.75]))
    # sigmoid of the quartiles of a standard normal, -0.6745, 0 and 0.6745
    torch.testing.assert_close(got, torch.tensor([0.3375, 0.5, 0.6625]), atol=5e-3, rtol=0)


def test_log_snr_law_has_its_mean_and_deviation():
    t = sample_timesteps("log_snr", 100_000, generator=generator()).double()
    log_snr = torch.log((1 - t) / t)
    # defaults of the released class: mean -1.2, deviation 2, clamped at +-9.21
    assert log_snr.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert log_snr.std().item() == pytest.approx(2.0, abs=0.03)


def test_uniform_log_snr_law_spans_its_two_ends():
    t = sample_timesteps("log_snr_uniform", 50_000, generator=generator()).double()
    log_snr = torch.log((1 - t) / t)
    assert log_snr.min().item() == pytest.approx(-6, abs=0.01)
    assert log_snr.max().item() == pytest.approx(5, abs=0.01)
    assert log_snr.mean().item() == pytest.approx(-0.5, abs=0.05)


@pytest.mark.parametrize("name", ["log_snr", "log_snr_uniform"])
def test_log_snr_laws_keep_away_from_both_ends(name):
    t = sample_timesteps(
        name, 1000, generator=generator(), std_logsnr=50.0, min_logsnr=-50, max_logsnr=50
    )
    assert t.min().item() == pytest.approx(1e-4)
    assert t.max().item() == pytest.approx(1 - 1e-4)


@pytest.mark.parametrize("name", TIMESTEP_LAWS)
def test_the_generator_decides_everything_and_nothing_global_moves(name):
    before = torch.get_rng_state()
    first = sample_timesteps(name, 16, generator=generator(7))
    again = sample_timesteps(name, 16, generator=generator(7))
    other = sample_timesteps(name, 16, generator=generator(8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.dtype == torch.float32
    assert first.shape == (16,)


def test_one_shot_probability_sends_that_share_to_pure_noise():
    t = sample_timesteps("logit_normal", 20_000, generator=generator(), p_one_shot=0.25)
    assert (t == 1).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_without_one_shot_the_generator_draws_nothing_more():
    g, expected = generator(), generator()
    sample_timesteps("logit_normal", 5, generator=g)
    torch.randn(5, generator=expected)
    assert torch.equal(g.get_state(), expected.get_state())


def test_an_unknown_law_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"trunc_logit_normal.*got 'beta'"):
        sample_timesteps("beta", 4, generator=generator())
