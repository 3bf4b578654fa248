from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sa3lora.evaluation.bootstrap import Estimate
from sa3lora.evaluation.embeddings import EmbeddedSet
from sa3lora.evaluation.scores import (
    Better,
    Context,
    Score,
    Sides,
    distance_scores,
    extrapolated_score,
    loss_score,
    prompt_scores,
)
from sa3lora.probe import paired_difference

CONTEXT = Context("stub", 1.0, 12, 24, 12, "mine", "0123456789abcdef", 60, 6)


def embedded(vectors: Tensor, *, windows: int) -> EmbeddedSet:
    tracks = torch.arange(len(vectors)) // windows
    names = tuple(str(n) for n in range(int(tracks[-1]) + 1))
    return EmbeddedSet(vectors.double(), tracks, names, 0, 0)


def draw(n: int, *, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) + shift


def sides(base: Tensor, adapter: Tensor, *, texts: list[str] | None = None) -> Sides:
    count = len(base) // 2
    prompts = draw(count, seed=9)
    names = texts or [str(n) for n in range(count)]
    return Sides(embedded(base, windows=2), embedded(adapter, windows=2), names, prompts)


def score(low: float | None, high: float | None, *, better: Better = "lower") -> Score:
    middle = -2.0 if low is None or high is None else (low + high) / 2
    gap = Estimate(middle, low, high, 8)
    return Score("fad", "FAD", better, gap, gap, gap, CONTEXT)


def by_key(scores: list[Score]) -> dict[str, Score]:
    return {item.key: item for item in scores}


def test_an_adapter_nearer_to_the_reference_is_told_apart() -> None:
    reference = embedded(draw(60, seed=1), windows=10)
    made = sides(draw(24, seed=2, shift=1.5), draw(24, seed=3))
    for result in distance_scores(made, reference, context=CONTEXT, replicates=60):
        assert result.base is not None
        assert result.adapter is not None
        assert result.adapter.value < result.base.value
        assert result.difference is not None
        assert result.difference.tells_apart
        assert "the adapter is better" in result.verdict


def test_equal_clips_have_no_difference_at_all() -> None:
    reference = embedded(draw(60, seed=1), windows=10)
    same = draw(24, seed=2)
    scores = distance_scores(sides(same, same), reference, context=CONTEXT, replicates=20)
    scores += prompt_scores(sides(same, same), context=CONTEXT)
    for result in scores:
        if result.difference is not None:
            assert result.difference.value == result.difference.low == result.difference.high == 0
            assert "cannot tell adapter and base apart" in result.verdict
    change = by_key(scores)["change"].adapter
    assert change is not None
    assert change.value == pytest.approx(0, abs=1e-12)


def test_pairing_makes_the_difference_surer_than_the_sides() -> None:
    reference = embedded(draw(60, seed=1), windows=10)
    base = draw(24, seed=2)
    (frechet, _) = distance_scores(
        sides(base, base + 0.05), reference, context=CONTEXT, replicates=60
    )
    assert frechet.base is not None
    assert frechet.difference is not None
    assert frechet.base.low is not None
    assert frechet.base.high is not None
    assert frechet.difference.low is not None
    assert frechet.difference.high is not None
    width = frechet.difference.high - frechet.difference.low
    assert width < 0.5 * (frechet.base.high - frechet.base.low)


def test_clips_of_one_prompt_are_resampled_together() -> None:
    texts = ["a", "b", "a", "b", "a", "b"]
    made = sides(draw(12, seed=1), draw(12, seed=2), texts=texts)
    assert made.num_units == 2
    assert made.units.tolist() == [0, 1, 0, 1, 0, 1]
    clap = by_key(prompt_scores(made, context=CONTEXT))["clap"]
    assert clap.difference is not None
    assert clap.difference.num_tracks == 2


def test_a_single_prompt_gives_scores_without_intervals() -> None:
    made = sides(draw(12, seed=1), draw(12, seed=2), texts=["a"] * 6)
    reference = embedded(draw(60, seed=1), windows=10)
    scores = prompt_scores(made, context=CONTEXT)
    scores += distance_scores(made, reference, context=CONTEXT, replicates=20)
    assert "clap_margin" not in by_key(scores)
    for result in scores:
        if result.difference is not None:
            assert result.difference.low is None
            assert "without an interval, so nothing is shown" in result.verdict


def test_clips_along_their_own_prompts_score_above_other_prompts() -> None:
    prompts = torch.eye(4)
    along = EmbeddedSet(prompts.double(), torch.arange(4), ("a", "b", "c", "d"), 0, 0)
    scores = by_key(
        prompt_scores(Sides(along, along, ["a", "b", "c", "d"], prompts), context=CONTEXT)
    )
    for key, expected in (("clap", 1.0), ("clap_margin", 1.0), ("diversity", 1.0)):
        base = scores[key].base
        assert base is not None
        assert base.value == pytest.approx(expected)


def test_extrapolation_takes_both_systems_and_needs_8_clips() -> None:
    reference = embedded(draw(200, seed=1), windows=10)
    enough = extrapolated_score(
        sides(draw(24, seed=2), draw(24, seed=3)), reference, context=CONTEXT
    )
    assert enough is not None
    assert enough[0].base == Estimate(enough[1].value, None, None, 12)
    few = sides(draw(14, seed=2), draw(14, seed=3))
    assert extrapolated_score(few, reference, context=CONTEXT) is None


def test_the_held_out_loss_keeps_the_probes_interval() -> None:
    base, adapter = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.8, 1.9, 2.7])
    paired = paired_difference(base, adapter, ["x", "y", "z"])
    result = loss_score(paired, context=CONTEXT)
    assert result.base == Estimate(2.0, None, None, 3)
    assert result.difference == Estimate(paired.difference, paired.low, paired.high, 3)


def test_a_verdict_knows_which_way_is_better() -> None:
    assert "the adapter is better" in score(-3, -1).verdict
    assert "the adapter is worse" in score(1, 3).verdict
    assert "the adapter is better" in score(1, 3, better="higher").verdict
    assert "FAD is higher (" in score(1, 3, better="neither").verdict
    assert "cannot tell" in score(-1, 3).verdict
    assert "nothing is shown" in score(None, None).verdict


def test_a_context_names_model_window_n_and_reference() -> None:
    assert str(CONTEXT) == (
        "stub, 1 s windows, n = 12, 24 windows, 12 independent, reference mine 0123456789ab "
        "(60 windows of 6 tracks)"
    )
