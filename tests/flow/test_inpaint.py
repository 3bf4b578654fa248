import pytest
import torch

from sa3lora.flow import regions_to_latent_mask, sample_keep_mask, samples_to_latent_mask

SEGMENTS, FULL, CAUSAL, SPANS = ([float(i == j) for j in range(4)] for i in range(4))
RATIO, RATE = 4096, 44_100


def draw(n, count, probabilities, *, num_frames=None, seed=0):
    return sample_keep_mask(
        torch.full((count,), n),
        num_frames or n,
        probabilities=probabilities,
        generator=torch.Generator().manual_seed(seed),
    )


def runs_of_hidden(row):
    padded = torch.cat([torch.tensor([True]), row, torch.tensor([True])]).int().diff()
    starts, ends = (padded == -1).nonzero().flatten(), (padded == 1).nonzero().flatten()
    return (ends - starts).tolist()


@pytest.mark.parametrize("law", [SEGMENTS, FULL, CAUSAL, SPANS])
def test_padding_is_never_given(law):
    keep = draw(7, 50, law, num_frames=12)
    assert keep.dtype == torch.bool
    assert keep.shape == (50, 12)
    assert not keep[:, 7:].any()


@pytest.mark.parametrize("law", [SEGMENTS, FULL, CAUSAL, SPANS])
def test_an_empty_clip_is_given_nothing(law):
    assert not draw(0, 4, law, num_frames=5).any()


@pytest.mark.parametrize("law", [SEGMENTS, FULL, CAUSAL, SPANS])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_shortest_clips_have_something_to_make(law, n):
    keep = draw(n, 40, law)
    if law == CAUSAL:
        assert keep.all(dim=1).any(), "a prefix may be the whole clip"
    else:
        assert not keep.all(dim=1).any()


def test_full_hides_everything():
    assert not draw(20, 10, FULL).any()


def test_causal_keeps_a_beginning_of_every_length_alike():
    n = 4
    keep = draw(n, 4000, CAUSAL)
    kept = keep.sum(dim=1)
    assert torch.equal(keep, torch.arange(n)[None] < kept[:, None])
    # uniform on 0..4, so a fifth each; deviation of a share is 0.0063
    shares = torch.bincount(kept, minlength=n + 1) / 4000
    torch.testing.assert_close(shares, torch.full((n + 1,), 0.2), atol=0.025, rtol=0)


def test_segments_hide_at_most_as_much_as_ten_of_a_kth_can():
    keep = draw(60, 400, SEGMENTS)
    hidden = (~keep).sum(dim=1)
    assert hidden.min() >= 1
    assert hidden.max() <= 60
    assert max(len(runs_of_hidden(row)) for row in keep) <= 10


def test_segments_hide_the_share_that_their_law_implies():
    # mean over k = 1..10 of the chance that a frame is hidden, by enumeration of the law
    n = 12
    expected = torch.zeros(n, dtype=torch.float64)
    for k in range(1, 11):
        longest = max(1, n // k)
        covered = torch.zeros(n, dtype=torch.float64)
        for length in range(1, longest + 1):
            for start in range(n - length + 1):
                covered[start : start + length] += 1 / (longest * (n - length + 1))
        expected += (1 - (1 - covered) ** k) / 10
    hidden = (~draw(n, 6000, SEGMENTS)).double().mean(dim=0)
    # deviation of a share is at most 0.0065
    torch.testing.assert_close(hidden, expected, atol=0.028, rtol=0)


def test_spans_hide_a_fifth_or_more_in_at_most_four_stretches():
    n = 100
    keep = draw(n, 300, SPANS)
    hidden = (~keep).sum(dim=1)
    assert hidden.min() >= 0.2 * n - 1
    assert max(len(runs_of_hidden(row)) for row in keep) <= 4
    # ratio uniform on 0.2..1: mean 0.6, deviation of the mean 0.013; crowding drops a little
    assert 0.5 < hidden.float().mean().item() / n < 0.65


def test_spans_come_in_the_weighted_counts():
    keep = draw(4000, 400, SPANS, seed=1)
    counts = torch.bincount(torch.tensor([len(runs_of_hidden(row)) for row in keep]), minlength=5)
    share = counts[1].item() / 400
    # weights 4, 2, 1, 1: half of the clips have one span; touching and dropped spans add some
    assert 0.45 < share < 0.65
    assert counts[2] > counts[3]
    assert counts[4] > 0


def test_laws_are_drawn_with_their_probabilities():
    n = 50
    keep = draw(n, 3000, [0.25, 0.5, 0.25])
    full = (~keep).all(dim=1).float().mean().item()
    # a causal draw is empty once in 51, and one long segment about once in 10 * 50 * 1
    assert full == pytest.approx(0.5 + 0.25 / 51, abs=0.03)


def test_the_released_mix_is_the_default():
    keep = sample_keep_mask(torch.full((3000,), 50), 50, generator=torch.Generator().manual_seed(0))
    assert (~keep).all(dim=1).float().mean().item() == pytest.approx(0.8 + 0.1 / 51, abs=0.025)


def test_items_of_a_batch_have_masks_of_their_own():
    keep = draw(200, 6, CAUSAL)
    assert len({int(row.sum()) for row in keep}) > 1


def test_the_generator_decides_everything():
    law = [0.4, 0.1, 0.1, 0.4]
    assert torch.equal(draw(40, 20, law, seed=3), draw(40, 20, law, seed=3))
    assert not torch.equal(draw(40, 20, law, seed=3), draw(40, 20, law, seed=4))


@pytest.mark.parametrize("bad", [[0.5, 0.5], [0.5, 0.6, 0.1], [-0.1, 1.0, 0.1]])
def test_probabilities_that_are_no_law_are_refused(bad):
    with pytest.raises(ValueError, match="3 or 4 numbers of sum 1, got"):
        draw(5, 1, bad)


def test_a_clip_longer_than_the_batch_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 4\], got \[5\]"):
        draw(5, 1, FULL, num_frames=4)


def test_a_region_hides_the_frames_that_start_in_it():
    # a zeroed stretch of samples [s, e) hides latents [ceil(s / 4096), ceil(e / 4096))
    start_s, end_s = 1.0, 2.5
    keep = regions_to_latent_mask(
        [(start_s, end_s)], num_samples=40 * RATIO, sample_rate=RATE, ratio=RATIO
    )
    low, high = -(-int(start_s * RATE) // RATIO), -(-int(end_s * RATE) // RATIO)
    assert keep.shape == (40,)
    assert (~keep).nonzero().flatten().tolist() == list(range(low, high))


def test_several_regions_and_the_end_of_the_music_add_up():
    args = {"num_samples": 40 * RATIO, "sample_rate": RATE, "ratio": RATIO}
    both = regions_to_latent_mask([(0.0, 0.5), (2.0, 2.2)], duration_s=3.0, **args)
    parts = [
        regions_to_latent_mask([(0.0, 0.5)], **args),
        regions_to_latent_mask([(2.0, 2.2)], **args),
        regions_to_latent_mask([(3.0, 99.0)], **args),
    ]
    assert torch.equal(both, parts[0] & parts[1] & parts[2])
    assert both.any()
    assert not both.all()


def test_regions_equal_the_mask_of_their_samples():
    num_samples = 21 * RATIO
    regions = [(0.3, 0.9), (1.1, 1.25)]
    samples = torch.ones(1, num_samples, dtype=torch.bool)
    for start_s, end_s in regions:
        samples[:, int(start_s * RATE) : int(end_s * RATE)] = False
    args = {"num_samples": num_samples, "sample_rate": RATE, "ratio": RATIO, "duration_s": 1.5}
    assert torch.equal(
        samples_to_latent_mask(samples, **args)[0], regions_to_latent_mask(regions, **args)
    )


def test_a_sample_mask_that_is_too_long_is_cut():
    samples = torch.ones(2, 12, dtype=torch.bool)
    samples[0, 4:8] = False
    samples[:, 8:] = False
    keep = samples_to_latent_mask(samples, num_samples=8, sample_rate=4, ratio=2)
    assert keep.tolist() == [[True, True, False, False], [True] * 4]


@pytest.mark.parametrize("region", [(-0.5, 1.0), (2.0, 2.0), (3.0, 1.0)])
def test_a_region_that_makes_no_sense_is_refused(region):
    with pytest.raises(ValueError, match=f"got {region[0]} to {region[1]} s"):
        regions_to_latent_mask([region], num_samples=RATIO, sample_rate=RATE, ratio=RATIO)
