from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sa3lora.errors import DatasetError
from sa3lora.latents.format import LatentsDataset
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.probe import ProbeSet
from sa3lora.recipe import ObjectiveSection


def _text(caption: str) -> torch.Tensor:
    return torch.full((3, 24), len(caption) / 10)


def _build(
    clips: LatentsDataset, source: ModelSource, *, seed: int = 0, frames_per_batch: int = 200
) -> ProbeSet:
    return ProbeSet.build(
        clips,
        12,
        seed=seed,
        objective=ObjectiveSection(inpaint=[0.3, 0.4, 0.3]),
        model_config=source.config,
        max_frames=24,
        frames_per_batch=frames_per_batch,
    )


def test_a_model_scores_the_same_every_time(
    clips: LatentsDataset, source: ModelSource, denoiser: Denoiser
) -> None:
    first = _build(clips, source).losses(denoiser, _text)
    again = _build(clips, source).losses(denoiser, _text)
    assert torch.equal(first, again)
    assert bool((first > 0).all())


def test_tuples_do_not_depend_on_how_they_are_batched(
    clips: LatentsDataset, source: ModelSource, denoiser: Denoiser
) -> None:
    wide = _build(clips, source, frames_per_batch=400).losses(denoiser, _text)
    narrow = _build(clips, source, frames_per_batch=1).losses(denoiser, _text)
    torch.testing.assert_close(wide, narrow, rtol=1e-5, atol=1e-6)


def test_losses_leave_the_global_generator_alone(
    clips: LatentsDataset, source: ModelSource, denoiser: Denoiser
) -> None:
    before = torch.get_rng_state()
    _build(clips, source).losses(denoiser, _text)
    assert torch.equal(torch.get_rng_state(), before)


def test_tuples_go_round_the_tracks(clips: LatentsDataset, source: ModelSource) -> None:
    counts = Counter(_build(clips, source).tracks)
    assert len(counts) == 5
    assert max(counts.values()) - min(counts.values()) <= 1


def test_another_seed_chooses_other_tuples(clips: LatentsDataset, source: ModelSource) -> None:
    assert _build(clips, source).items != _build(clips, source, seed=1).items


def test_long_clips_are_cut_and_told_their_new_length(
    clips: LatentsDataset, source: ModelSource
) -> None:
    items = _build(clips, source).items
    longest = max(items, key=lambda item: clips.num_frames[item.index])
    assert clips.num_frames[longest.index] > 24
    assert longest.num_frames == 24
    assert longest.seconds == pytest.approx(24 * 32 / 8000)


def test_a_split_without_clips_is_refused(
    tmp_path: Path, make_latents: Callable[..., Path], source: ModelSource
) -> None:
    root = make_latents(tmp_path / "latents", tracks=1, held_out=0)
    with pytest.raises(DatasetError, match="no clip in its validation split"):
        _build(LatentsDataset.open(root, split="validation"), source)
