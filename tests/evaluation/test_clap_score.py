from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from sa3lora.evaluation.clap_score import (
    change_scores,
    clip_means,
    diversity_replicates,
    matched_scores,
    shuffled_scores,
)

AXES = torch.eye(3, dtype=torch.float64)


def test_a_clip_along_its_prompt_scores_1_and_across_it_0() -> None:
    clips = clip_means(AXES * 5, torch.arange(3))
    assert_close(matched_scores(clips, AXES * 0.1), torch.ones(3, dtype=torch.float64))
    assert_close(matched_scores(clips, AXES.roll(1, dims=0)), torch.zeros(3, dtype=torch.float64))


def test_a_clip_scores_the_mean_of_its_windows() -> None:
    clips = clip_means(torch.stack([AXES[0], 9 * AXES[1], AXES[2]]), torch.tensor([0, 0, 1]))
    scores = matched_scores(clips, torch.stack([AXES[0], AXES[2]]))
    assert_close(scores, torch.tensor([0.5, 1.0], dtype=torch.float64))


def test_equal_prompts_are_not_foreign_to_each_other() -> None:
    prompts = torch.stack([AXES[0], AXES[0], AXES[1]])
    clips = clip_means(torch.stack([AXES[0], AXES[0], AXES[0]]), torch.arange(3))
    shuffled = shuffled_scores(clips, prompts, texts=["a", "a", "b"])
    assert_close(shuffled, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))


def test_one_prompt_for_all_has_no_foreign_score() -> None:
    clips = clip_means(AXES, torch.arange(3))
    assert shuffled_scores(clips, AXES, texts=["a", "a", "a"]).isnan().all()


def test_diversity_is_1_for_crosswise_clips_and_0_for_copies() -> None:
    once = torch.ones(1, 3)
    assert diversity_replicates(AXES, once).item() == pytest.approx(1.0)
    assert diversity_replicates(AXES[:1].repeat(3, 1), once).item() == pytest.approx(0.0)


def test_a_clip_and_its_own_copy_are_no_pair_of_diversity() -> None:
    assert diversity_replicates(AXES, torch.full((1, 3), 2)).item() == pytest.approx(1.0)
    assert diversity_replicates(AXES, torch.tensor([[3, 0, 0]])).isnan().all()


def test_an_adapter_that_changes_nothing_has_change_0() -> None:
    assert_close(change_scores(AXES, 2 * AXES), torch.zeros(3, dtype=torch.float64))


def test_sets_of_different_clips_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(3, 3\) and \(2, 3\)"):
        matched_scores(AXES, AXES[:2])
