from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.files import AdapterFile, write_adapter
from sa3lora.audio import read_audio
from sa3lora.errors import AdapterError, AudioError, EvaluationError
from sa3lora.evaluation.evaluate import Options, evaluate_adapter
from sa3lora.evaluation.result import EvaluationResult, Settings

SETTINGS = Settings(num_clips=8, duration_s=2.0, seed=5, num_inference_steps=4, guidance_scale=2.0)
OPTIONS = Options(replicates=30)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    tensors = {"lora_A": torch.ones(2, 4), "lora_B": torch.ones(4, 2)}
    file = AdapterFile(AdapterConfig(type="lora", r=2), {"model.layer": tensors})
    write_adapter(tmp_path / "loud.safetensors", file)
    return tmp_path / "loud.safetensors"


@pytest.fixture
def evaluate(
    pipeline: Any, embedder: Any, adapter: Path, audio_folder: Callable[..., Path], tmp_path: Path
) -> Callable[..., EvaluationResult]:
    """Evaluate a louder adapter against a reference that is as loud."""
    reference = audio_folder("loud", level=0.2)

    def run(**changes: Any) -> EvaluationResult:
        arguments: dict[str, Any] = {
            "reference": reference,
            "out": tmp_path / "out",
            "embedder": embedder,
            "settings": SETTINGS,
            "options": OPTIONS,
        }
        return evaluate_adapter(pipeline, [(adapter, 1.0)], **(arguments | changes))

    return run


def test_both_systems_get_the_same_prompts_and_seeds(
    evaluate: Callable[..., EvaluationResult], pipeline: Any
) -> None:
    result = evaluate()
    base = [(prompt, seed) for prompt, seed, loaded in pipeline.calls if not loaded]
    adapted = [(prompt, seed) for prompt, seed, loaded in pipeline.calls if loaded]
    assert base == adapted == [(clip.prompt, clip.seed) for clip in result.clips]
    assert [seed for _, seed in base] == list(range(5, 13))
    assert pipeline.loaded == {}


def test_an_adapter_that_comes_nearer_to_the_reference_is_said_to_be_better(
    evaluate: Callable[..., EvaluationResult],
) -> None:
    verdicts = {score.key: score.verdict for score in evaluate().scores}
    assert "the adapter is better" in verdicts["fad"]
    assert "the adapter is better" in verdicts["kad"]
    assert "cannot tell adapter and base apart" not in verdicts["fad"]


def test_the_folder_holds_audio_json_page_and_scalars(
    evaluate: Callable[..., EvaluationResult], tmp_path: Path
) -> None:
    result = evaluate()
    out = tmp_path / "out"
    for clip in result.clips:
        base, rate = read_audio(out / clip.base)
        louder, _ = read_audio(out / clip.adapter)
        assert rate == 1000
        torch.testing.assert_close(louder, 2 * base)
    stored = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(result.to_json()))
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    events = EventAccumulator(str(out))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("evaluation/fad ")]
    assert sorted(tag.rsplit("/", 1)[1] for tag in tags) == ["adapter", "base", "difference"]


def test_every_score_in_the_json_carries_model_window_n_and_reference(
    evaluate: Callable[..., EvaluationResult],
) -> None:
    for score in evaluate().to_json()["scores"]:
        context = score["context"]
        assert context["embedder"] == "stub"
        assert context["window_s"] == 1.0
        assert context["num_clips"] == 8
        assert len(context["reference_hash"]) == 64


def test_the_same_evaluation_twice_gives_the_same_numbers(
    evaluate: Callable[..., EvaluationResult], tmp_path: Path
) -> None:
    first = list(_leaves(evaluate().to_json()))
    again = list(_leaves(evaluate(out=tmp_path / "again").to_json()))
    # the last digits depend on how the linear algebra finds its arrays aligned in memory
    assert again == [
        pytest.approx(leaf, rel=1e-9, abs=1e-12) if isinstance(leaf, float) else leaf
        for leaf in first
    ]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def test_prompts_replace_the_captions_of_the_reference(
    evaluate: Callable[..., EvaluationResult],
) -> None:
    assert {clip.prompt for clip in evaluate(prompts=["bells"]).clips} == {"bells"}
    assert {clip.prompt for clip in evaluate().clips} == {
        f"a noise {'a' * n}".strip() for n in range(6)
    }


def test_a_failure_on_the_way_unloads_the_adapter_and_leaves_nothing(
    evaluate: Callable[..., EvaluationResult], pipeline: Any, tmp_path: Path
) -> None:
    pipeline.fail_at = 11
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate()
    assert pipeline.loaded == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_broken_reference_file_ends_it_before_anything_is_generated(
    evaluate: Callable[..., EvaluationResult], pipeline: Any, audio_folder: Callable[..., Path]
) -> None:
    folder = audio_folder("broken")
    (folder / "3.wav").write_bytes(b"")
    with pytest.raises(AudioError, match=r"3\.wav: 0 bytes"):
        evaluate(reference=folder)
    assert pipeline.calls == []


def test_a_duration_beyond_the_model_is_refused(
    evaluate: Callable[..., EvaluationResult],
) -> None:
    with pytest.raises(EvaluationError, match="stub-model makes up to 20 s, got 99 s"):
        evaluate(settings=replace(SETTINGS, duration_s=99.0))


def test_a_single_clip_is_refused(evaluate: Callable[..., EvaluationResult]) -> None:
    with pytest.raises(EvaluationError, match="at least 2 clips, got 1"):
        evaluate(settings=replace(SETTINGS, num_clips=1))


def test_a_missing_adapter_is_named(
    evaluate: Callable[..., EvaluationResult],
    pipeline: Any,
    embedder: Any,
    audio_folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(AdapterError, match=r"gone\.safetensors"):
        evaluate_adapter(
            pipeline,
            [(tmp_path / "gone.safetensors", 1.0)],
            reference=audio_folder("x"),
            out=tmp_path / "out",
            embedder=embedder,
            settings=SETTINGS,
        )


def test_weak_numbers_are_called_weak(evaluate: Callable[..., EvaluationResult]) -> None:
    notes = " ".join(evaluate(settings=replace(SETTINGS, duration_s=0.5)).notes)
    assert "8 windows on a side are few; FAD wants 200 or more" in notes
    assert "8 of 8 clips a system and 0 reference pieces are shorter than the 1 s window" in notes
    assert "8 clips come from 6 prompts" in notes
    assert "no held-out loss: no latents dataset was given" in notes
