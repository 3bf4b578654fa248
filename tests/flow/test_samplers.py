import math

import pytest
import torch

from sa3lora.flow import SAMPLERS, interpolate, make_schedule, sample

SHAPE = (2, 3, 5)
SPREAD = 0.4  # deviation of the Gaussian data in `gaussian_velocity`


def randn(seed, shape=SHAPE, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def straight_velocity(noise, data):
    return lambda x, t: noise - data


def gaussian_velocity(x, t):
    """The exact velocity when data is N(0, SPREAD^2): its paths bend."""
    s = t[:, None, None]
    expected_data = (1 - s) * SPREAD**2 * x / ((1 - s) ** 2 * SPREAD**2 + s**2)
    return (x - expected_data) / s


def gaussian_end(noise, start, end):
    """Closed solution of the path that `gaussian_velocity` drives."""

    def deviation(t):
        return math.sqrt((1 - t) ** 2 * SPREAD**2 + t**2)

    return noise * deviation(end) / deviation(start)


@pytest.mark.parametrize("sampler", ["euler", "rk4", "dpmpp"])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_straight_path_is_followed_exactly(sampler, steps):
    noise, data = randn(0), randn(1)
    schedule = make_schedule(steps, length=100)
    got = sample(straight_velocity(noise, data), noise, schedule=schedule, sampler=sampler)
    torch.testing.assert_close(got, data, atol=2e-6, rtol=1e-5)


def test_pingpong_with_a_perfect_model_ends_in_the_data():
    noise, data = randn(0), randn(1)

    def velocity(x, t):
        return (x - data) / t[:, None, None]

    schedule = make_schedule(6, length=100)
    got = sample(velocity, noise, schedule=schedule, sampler="pingpong")
    torch.testing.assert_close(got, data, atol=1e-6, rtol=1e-5)


def error_of(sampler, schedule):
    noise = randn(0, dtype=torch.float64)
    truth = gaussian_end(noise, schedule[0].item(), schedule[-1].item())
    got = sample(gaussian_velocity, noise, schedule=schedule, sampler=sampler)
    return (got - truth).norm().item()


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("dpmpp", 2), ("rk4", 4)])
def test_error_falls_with_the_order_of_the_solver(sampler, order):
    # away from both ends, where the path is smooth
    errors = [
        error_of(sampler, torch.linspace(0.95, 0.1, steps + 1, dtype=torch.float64))
        for steps in (32, 64)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("steps", [8, 20, 50])
def test_dpmpp_is_nearer_than_euler_on_a_bent_path(steps):
    schedule = make_schedule(steps, length=100).double()
    assert error_of("dpmpp", schedule) < 0.9 * error_of("euler", schedule)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("sigma_max", [1.0, 0.9])
def test_a_table_equals_separate_runs(sampler, sigma_max):
    noise, renoise = randn(0), randn(2, (6, *SHAPE))
    table = make_schedule(
        6, length=torch.tensor([40.0, 3000.0]), sigma_max=sigma_max, options={"type": "logsnr"}
    )
    assert not torch.equal(table[0], table[1])

    def run(rows, schedule):
        return sample(
            gaussian_velocity,
            noise[rows],
            schedule=schedule,
            sampler=sampler,
            renoise=renoise[:, rows] if sampler == "pingpong" else None,
        )

    together = run(slice(None), table)
    for i in range(2):
        alone = run(slice(i, i + 1), table[i])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=1e-5)


def test_rk4_with_a_table_of_one_row_moves():
    # the released code gives the initial noise back here
    noise = randn(0)[:1]
    table = make_schedule(12, length=torch.tensor([40.0]))
    got = sample(gaussian_velocity, noise, schedule=table, sampler="rk4")
    torch.testing.assert_close(got, gaussian_end(noise, 1.0, 0.0), atol=1e-3, rtol=0)


def test_rk4_never_asks_for_time_zero():
    times = []

    def velocity(x, t):
        times.append(t.min().item())
        return x

    sample(velocity, randn(0), schedule=make_schedule(3, length=10), sampler="rk4")
    assert min(times) == pytest.approx(1e-5)


def test_pingpong_draws_one_noise_a_step_including_the_last():
    noise = randn(0)
    schedule = make_schedule(4, length=10)
    drawn, used = (torch.Generator().manual_seed(5) for _ in range(2))
    renoise = torch.stack([torch.randn(SHAPE, generator=drawn) for _ in range(4)])
    given = sample(gaussian_velocity, noise, schedule=schedule, sampler="pingpong", renoise=renoise)
    own = sample(gaussian_velocity, noise, schedule=schedule, sampler="pingpong", generator=used)
    assert torch.equal(own, given)
    assert torch.equal(used.get_state(), drawn.get_state())


def test_pingpong_without_a_generator_follows_the_global_seed():
    schedule = make_schedule(3, length=10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        got = sample(gaussian_velocity, randn(0), schedule=schedule, sampler="pingpong")
        torch.manual_seed(9)
        renoise = torch.stack([torch.randn(SHAPE) for _ in range(3)])
    expected = sample(
        gaussian_velocity, randn(0), schedule=schedule, sampler="pingpong", renoise=renoise
    )
    assert torch.equal(got, expected)


def test_init_audio_starts_from_a_mix_and_keeps_a_straight_path():
    noise, data = randn(0), randn(1)
    start = interpolate(data, noise, 0.7)
    schedule = make_schedule(5, length=10, sigma_max=0.7)
    got = sample(straight_velocity(noise, data), start, schedule=schedule, sampler="euler")
    torch.testing.assert_close(got, data, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_schedule_of_zeros_gives_the_start_back(sampler):
    noise = randn(0)
    schedule = make_schedule(3, length=10, sigma_max=0.0)
    assert torch.equal(sample(gaussian_velocity, noise, schedule=schedule, sampler=sampler), noise)


@pytest.mark.parametrize("sampler", ["euler", "pingpong"])
def test_a_table_rounds_times_to_half_precision_latents(sampler):
    # the released samplers cast a per-item time to the dtype of the latents
    times = []

    def velocity(x, t):
        assert t.dtype == torch.float32
        assert t.shape == (2,)
        times.append(t)
        return torch.zeros_like(x)

    table = make_schedule(3, length=torch.tensor([5.0, 9.0]))
    got = sample(velocity, randn(0).half(), schedule=table, sampler=sampler)
    assert torch.equal(torch.stack(times, dim=1), table[:, :3].half().float())
    assert got.dtype == torch.float16


@pytest.mark.parametrize("sampler", ["euler", "pingpong", "dpmpp", "rk4"])
def test_float32_latents_see_unrounded_times(sampler):
    first_time_of_step = []
    table = make_schedule(3, length=torch.tensor([5.0, 9.0]))
    sample(
        gaussian_velocity,
        randn(0),
        schedule=table,
        sampler=sampler,
        callback=lambda step: first_time_of_step.append(step.t),
    )
    assert torch.equal(torch.stack(first_time_of_step, dim=1), table[:, :3])


def test_dpmpp_keeps_float32_times_and_widens_half_latents():
    times = []

    def velocity(x, t):
        times.append(t)
        return torch.zeros_like(x)

    table = make_schedule(2, length=torch.tensor([5.0, 9.0]))
    got = sample(velocity, randn(0).half(), schedule=table, sampler="dpmpp")
    assert torch.equal(torch.stack(times, dim=1), table[:, :2])
    assert got.dtype == torch.float32


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_callback_sees_every_step_before_it_is_taken(sampler):
    noise, data = randn(0), randn(1)
    steps = []
    schedule = make_schedule(3, length=10)
    sample(
        lambda x, t: (x - data) / t[:, None, None],
        noise,
        schedule=schedule,
        sampler=sampler,
        callback=steps.append,
    )
    assert [step.i for step in steps] == [0, 1, 2]
    assert torch.equal(steps[0].x, noise)
    torch.testing.assert_close(torch.stack([step.t[0] for step in steps]), schedule[:3])
    for step in steps:
        torch.testing.assert_close(step.denoised, data, atol=1e-6, rtol=1e-5)


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match=r"euler, pingpong, dpmpp, rk4, got 'heun'"):
        sample(gaussian_velocity, randn(0), schedule=make_schedule(2, length=9), sampler="heun")


def test_a_table_for_another_batch_is_refused():
    table = make_schedule(2, length=torch.tensor([5.0, 9.0, 7.0]))
    with pytest.raises(ValueError, match="3 rows for a batch of 2"):
        sample(gaussian_velocity, randn(0), schedule=table, sampler="euler")


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4)])
def test_a_schedule_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"steps \+ 1"):
        sample(gaussian_velocity, randn(0), schedule=torch.ones(shape), sampler="euler")


def test_renoise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 2, 3, 5\), got \(3, 2, 3, 5\)"):
        sample(
            gaussian_velocity,
            randn(0),
            schedule=make_schedule(2, length=9),
            sampler="pingpong",
            renoise=randn(1, (3, *SHAPE)),
        )
