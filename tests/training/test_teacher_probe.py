from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sa3lora.models.source import ModelSource
from sa3lora.probe import mean_by_track
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.data import TrainingData
from sa3lora.training.distillation import distillation_loss
from sa3lora.training.processes import accelerated
from sa3lora.training.session import build_text, load_denoiser, set_up
from sa3lora.training.teacher import PairFolder, make_pairs, training_pairs, validation_pairs
from sa3lora.training.teacher_probe import TeacherProbe, teacher_probes
from sa3lora.training.trainer import train

MakeRecipe = Callable[..., Recipe]


def test_a_distilled_run_is_scored_by_its_distance_from_the_teacher(
    tmp_path: Path, few_step: ModelSource, make_student: MakeRecipe
) -> None:
    recipe = make_student(
        "train.max_steps=12", "validate.every=4", "objective.silence_s=0", "validate.drift=false"
    )
    run = RunFolder.create("student", root=tmp_path)
    result = train(recipe, run=run, source=few_step, device="cpu")
    manifest = json.loads(run.manifest_path.read_text(encoding="utf-8"))
    entries = {entry["step"]: entry for entry in manifest["validation"]}
    assert list(entries) == [4, 8, 12]
    assert all({"validation", "train", "gap"} <= set(entry) for entry in entries.values())
    assert len({entry["validation"]["base"] for entry in entries.values()}) == 1
    assert result.adapter_step == manifest["best"]["step"]
    assert entries[12]["train"]["difference"] < 0, "what it trains on comes nearer"
    events = EventAccumulator(str(run.path)).Reload()
    assert [s.step for s in events.Scalars("fit/held_out_difference")] == [4, 8, 12]
    (score,) = events.Scalars("score/held_out_difference")
    chosen = entries[result.adapter_step]["validation"]["difference"]
    assert score.value == pytest.approx(chosen, abs=1e-6)

    with accelerated("cpu") as accelerator:
        setup = set_up(
            make_student("objective.silence_s=0", f"adapter.from={run.adapter_path}"),
            source=few_step, accelerator=accelerator,
        )  # fmt: skip
        trained, text = load_denoiser(setup), build_text(setup)
    pairs = PairFolder(run.path / "teacher")
    for denoiser, side in ((few_step.load_denoiser(), "base"), (trained, "adapter")):
        losses, tracks = [], []
        for wanted in validation_pairs(recipe, setup.data)["validation"]:
            row = wanted.clips.rows[wanted.index]
            with torch.no_grad():
                loss = distillation_loss(
                    denoiser.eval(),
                    [pairs.read(wanted.clip, wanted.number)],
                    text=[text(row.caption)],
                )
            losses.append(loss.total)
            tracks.append(row.source)
        alone = float(mean_by_track(torch.stack(losses), tracks).mean())
        assert entries[result.adapter_step]["validation"][side] == pytest.approx(alone, rel=1e-4)


def test_held_out_pairs_are_the_same_whatever_the_run_s_seed(
    few_step: ModelSource, make_student: MakeRecipe
) -> None:
    def of_seed(seed: int) -> tuple[Recipe, TrainingData]:
        recipe = make_student(f"train.seed={seed}")
        return recipe, TrainingData(recipe, source=few_step)

    one, two = (validation_pairs(*of_seed(seed)) for seed in (1, 2))

    def keys(found: dict[str, list], kind: str) -> list[tuple[str, int, int]]:
        return [(each.clip.clip_id, each.number, each.seed) for each in found[kind]]

    assert keys(one, "validation") == keys(two, "validation")
    assert len(set(keys(one, "validation"))) == 6
    trained = {(each.clip.clip_id, each.number, each.seed) for each in training_pairs(*of_seed(1))}
    assert set(keys(one, "train")) <= trained
    assert not {each.clip.clip_id for each in one["validation"]} & {each[0] for each in trained}


def test_without_validation_the_teacher_makes_nothing_to_validate_on(
    tmp_path: Path, few_step: ModelSource, make_student: MakeRecipe
) -> None:
    with accelerated("cpu") as accelerator:
        setup = set_up(make_student("validate.every=0"), source=few_step, accelerator=accelerator)
        make_pairs(setup, build_text(setup), tmp_path / "pairs", tell=lambda text: None)
    assert len(list((tmp_path / "pairs").iterdir())) == 12
    assert teacher_probes(setup, tmp_path / "pairs") == {}


def test_a_pair_scores_the_same_beside_longer_ones(
    tmp_path: Path, few_step: ModelSource, make_student: MakeRecipe
) -> None:
    with accelerated("cpu") as accelerator:
        setup = set_up(make_student(), source=few_step, accelerator=accelerator)
        text = build_text(setup)
        make_pairs(setup, text, tmp_path, tell=lambda text: None)
    wanted = training_pairs(setup.recipe, setup.data)
    denoiser, pairs = few_step.load_denoiser(), PairFolder(tmp_path)
    alone = TeacherProbe(wanted, pairs, frames_per_batch=1).losses(denoiser, text)
    together = TeacherProbe(wanted, pairs, frames_per_batch=4096).losses(denoiser, text)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert len(set(alone.tolist())) == len(wanted)
