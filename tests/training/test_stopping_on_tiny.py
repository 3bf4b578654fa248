"""Acceptance of the choice of a step, on the embedded model and a style that it never heard.

Run with `pytest -m slow tests/training/test_stopping_on_tiny.py -s`; it prints what it measured.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from datasets_prep.build import PrepOptions, prep
from sa3lora.adapters.files import read_adapter
from sa3lora.adapters.inject import import_adapter_state
from sa3lora.latents.format import LatentsDataset
from sa3lora.models.source import ModelSource, resolve_model
from sa3lora.probe import PairedDifference, ProbeSet, paired_difference
from sa3lora.recipe import Recipe, load_recipe
from sa3lora.runs import RunFolder
from sa3lora.tiny.pieces import write_style_folder
from sa3lora.training.checkpoint import checkpoint_steps
from sa3lora.training.events import TrainEvent
from sa3lora.training.processes import accelerated
from sa3lora.training.session import build_text, load_denoiser, set_up
from sa3lora.training.trainer import train
from sa3lora.training.validation import evaluating, without_adapters

pytestmark = pytest.mark.slow

_TEST_TUPLES = 48
_SEEDS = (1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def tiny() -> ModelSource:
    return resolve_model("tiny")


def _dataset(
    root: Path, source: ModelSource, *, style: str, tracks: int, share: float, seconds: float,
    seed: int,
) -> Path:  # fmt: skip
    write_style_folder(style, root / "tracks", n=tracks, duration_s=seconds, seed=seed)
    options = PrepOptions(validation=share, test=share)
    prep(root / "tracks", root / "latents", source=source, options=options)
    return root / "latents"


def _overrides(latents: Path, *, steps: int, every: int, seed: int) -> list[str]:
    return [
        f"data.root={latents}", f"train.max_steps={steps}",
        f"train.seed={seed}", "optim.schedule=constant", "preview.every=0",
        f"validate={{every: {every}, tuples: 48, drift: false}}",
        f"checkpoint={{every: {every}, keep: 100}}",
    ]  # fmt: skip


def test_three_clips_learned_by_heart_are_warned_of_and_the_step_before_is_chosen(
    tmp_path: Path, tiny: ModelSource
) -> None:
    latents = _dataset(
        tmp_path, tiny, style="lofi tape", tracks=9, share=0.34, seconds=6.0, seed=31_000
    )
    assert len(LatentsDataset.open(latents, split="train")) == 3
    overrides = [*_overrides(latents, steps=100, every=10, seed=1), "optim.lr=1e-3"]
    recipe = load_recipe("tiny_style", overrides)
    told: list[TrainEvent] = []
    run = RunFolder.create("three", root=tmp_path)
    result = train(recipe, run=run, source=tiny, device="cpu", progress=told.append)
    print(result.reason, *[event.text for event in told if event.kind == "warning"], sep="\n")
    assert result.overfits_since is not None
    assert result.adapter_step is not None
    assert result.adapter_step < result.overfits_since
    assert any("overfitting since" in event.text for event in told if event.kind == "warning")


def test_the_chosen_step_costs_at_most_half_an_interval_on_unseen_tracks(
    tmp_path: Path, tiny: ModelSource
) -> None:
    latents = _dataset(
        tmp_path, tiny, style="echo dub", tracks=18, share=0.17, seconds=8.0, seed=52_000
    )
    assert len(LatentsDataset.open(latents, split="train")) == 12
    regrets, intervals = [], []
    for seed in _SEEDS:
        overrides = _overrides(latents, steps=320, every=20, seed=seed)
        overrides += ["data.frames_per_batch=256", "optim.lr=2e-3"]
        recipe = load_recipe("tiny_style", overrides)
        run = RunFolder.create(f"seed{seed}", root=tmp_path)
        result = train(recipe, run=run, source=tiny, device="cpu")
        assert result.adapter_step is not None
        judged = _on_test_split(run, recipe=recipe, source=tiny)
        best = min(judged, key=lambda step: judged[step].difference)
        chosen = judged[result.adapter_step]
        assert chosen.low is not None
        assert chosen.high is not None
        regrets.append(chosen.difference - judged[best].difference)
        intervals.append(chosen.high - chosen.low)
        print(
            f"seed {seed}: chosen {result.adapter_step}, best on test {best}, regret "
            f"{regrets[-1]:.4f}, interval {intervals[-1]:.4f}, overfits {result.overfits_since}"
        )
    print(f"mean regret {mean(regrets):.4f}, half the mean interval {mean(intervals) / 2:.4f}")
    assert mean(regrets) <= mean(intervals) / 2


def _on_test_split(
    run: RunFolder, *, recipe: Recipe, source: ModelSource
) -> dict[int, PairedDifference]:
    """Paired losses of every checkpoint on tracks that neither training nor choice has seen."""
    with accelerated("cpu") as accelerator:
        setup = set_up(recipe, source=source, accelerator=accelerator)
        text, denoiser = build_text(setup), load_denoiser(setup)
    clips = LatentsDataset.open(setup.data.train.root, split="test")
    text.build(sorted(set(clips.captions)))
    probe = ProbeSet.build(
        clips, _TEST_TUPLES, seed=99, objective=recipe.objective, model_config=source.config
    )
    found = {}
    with evaluating(denoiser):
        with without_adapters(denoiser):
            base = probe.losses(denoiser, text)
        for step in checkpoint_steps(run.checkpoints):
            file = run.checkpoints / f"step-{step:08d}" / "adapter.safetensors"
            import_adapter_state(denoiser, read_adapter(file).tensors)
            found[step] = paired_difference(base, probe.losses(denoiser, text), probe.tracks)
    return found
