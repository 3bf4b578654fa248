from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import plugin_data_pb2

from sa3lora.probe import PairedDifference
from sa3lora.recipe import AdapterSection, OptimSection, PreviewSection, Recipe
from sa3lora.training.hparams import (
    EVALUATION_SCORES,
    SCORES,
    final_scores,
    flat_settings,
    hparams_summaries,
)
from sa3lora.training.tracking import Tracker
from sa3lora.training.validation import Validation


def _difference(value: float) -> PairedDifference:
    return PairedDifference(0.5, 0.5 + value, value, value - 0.1, value + 0.1, 3, 9)


def test_settings_are_values_that_a_column_can_hold_and_leave_out_what_shapes_nothing() -> None:
    recipe = Recipe(
        optim=OptimSection(lr=0.5), preview=PreviewSection(prompts=["long text"]),
        adapter=AdapterSection(r=7),
    )  # fmt: skip
    settings = flat_settings(recipe)
    assert settings["optim.lr"] == 0.5
    assert settings["data.root"] == ""
    assert settings["train.compile"] is False
    assert not any(name.startswith(("preview", "checkpoint")) for name in settings)
    assert next(iter(settings)) == "adapter.type"


def test_scores_are_those_of_the_step_that_was_written() -> None:
    manifest = {
        "overfits_since": 30,
        "validation": [
            {"step": 20, "gap": {"value": 0.1}, "drift": 0.01},
            {"step": 40, "gap": {"value": 0.9}, "drift": 0.5},
        ],
    }
    results = {"validation": _difference(-0.1), "train": _difference(-0.2)}
    scores = final_scores(manifest, Validation(20, results), step=20)
    assert set(scores) == set(SCORES)
    assert scores["score/gap"] == 0.1
    assert scores["score/drift"] == 0.01
    assert scores["score/overfits_since"] == 30.0
    assert scores["score/held_out_difference"] == -0.1


def test_a_run_without_validation_still_says_its_step() -> None:
    manifest = {"overfits_since": None, "validation": []}
    assert final_scores(manifest, None, step=9) == {"score/adapter_step": 9.0}


def test_runs_stay_rows_of_their_own_with_every_score_as_a_column(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with Tracker(tmp_path / name, first_step=1) as tracker:
            tracker.hparams({"adapter.r": 4, "optim.name": "adamw"}, {"score/gap": 0.25})
    events = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    trials = set()
    for name in ("one", "two"):
        tags = events.GetAccumulator(name).summary_metadata
        start = plugin_data_pb2.HParamsPluginData.FromString(
            tags["_hparams_/session_start_info"].plugin_data.content
        ).session_start_info
        trials.add(start.group_name)
        assert start.hparams["adapter.r"].number_value == 4
        columns = plugin_data_pb2.HParamsPluginData.FromString(
            tags["_hparams_/experiment"].plugin_data.content
        ).experiment.metric_infos
        named = {(info.name.tag, info.name.group) for info in columns}
        assert named == {(tag, "") for tag in SCORES} | {
            (tag, "evaluation") for tag in EVALUATION_SCORES
        }
        scalars = events.GetAccumulator(name).Scalars("score/gap")
        assert scalars[0].value == pytest.approx(0.25)
    assert len(trials) == 2


def test_what_is_shown_at_first_is_there_without_an_evaluation() -> None:
    columns, *_ = hparams_summaries({"adapter.r": 4}, run="one")
    shown = plugin_data_pb2.HParamsPluginData.FromString(
        columns.value[0].metadata.plugin_data.content
    ).experiment.metric_infos[:5]
    assert {info.name.tag for info in shown} <= set(SCORES)
