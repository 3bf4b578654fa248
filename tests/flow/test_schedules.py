import pytest
import torch

from sa3lora.flow import make_schedule, shift


def test_eight_steps_match_the_published_schedule():
    # inference spec of the released models, 8 steps
    expected = torch.tensor(
        [1, 0.9943756, 0.9844802, 0.9579123, 0.8909032, 0.7455466, 0.5124974, 0.2738850, 0]
    )
    schedule = make_schedule(8, length=1292)
    torch.testing.assert_close(schedule, expected, atol=1e-6, rtol=0)
    assert schedule[[0, -1]].tolist() == [1, 0], "both ends are exact"


def test_a_lower_start_pins_only_the_first_time():
    # inference spec: sigma_max 0.9, the second time lies above the first
    expected = torch.tensor(
        [0.9, 0.9885415, 0.9716673, 0.9316618, 0.8442242, 0.6829798, 0.4613274, 0.2539794, 0]
    )
    schedule = make_schedule(8, length=1292, sigma_max=0.9)
    torch.testing.assert_close(schedule, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{"type": "full"}, {"type": "logsnr"}, {"type": "none"}, None])
def test_a_table_holds_the_schedule_of_each_length(options):
    lengths = torch.tensor([6.0, 600.0, 4092.0])
    table = make_schedule(5, length=lengths, sigma_max=0.8, options=options)
    assert table.shape == (3, 6)
    for row, length in zip(table, lengths, strict=True):
        alone = make_schedule(5, length=int(length), sigma_max=0.8, options=options)
        assert torch.equal(row, alone)


def test_interior_times_are_the_warped_even_grid():
    schedule = make_schedule(4, length=1000, options={"type": "full"})
    grid = torch.tensor([0.75, 0.5, 0.25])
    torch.testing.assert_close(schedule[1:4], shift(grid, 1000, options={"type": "full"}))


@pytest.mark.parametrize("length", [0, torch.tensor([0.0])])
def test_a_length_of_zero_counts_as_one(length):
    one = 1 if isinstance(length, int) else torch.tensor([1.0])
    options = {"type": "logsnr"}
    assert torch.equal(
        make_schedule(3, length=length, options=options),
        make_schedule(3, length=one, options=options),
    )


def test_no_noise_gives_a_schedule_of_zeros():
    assert not make_schedule(4, length=10, sigma_max=0.0).any()


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make_schedule(0, length=10)


def test_a_start_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.2"):
        make_schedule(4, length=10, sigma_max=1.2)
