"""What `sa3lora demo` does, stage by stage, with the functions that the verbs use."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sa3lora.cli.output import progress, status
from sa3lora.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from sa3lora.evaluation.result import EvaluationResult
    from sa3lora.models import ModelSource
    from sa3lora.pipeline import SA3Pipeline
    from sa3lora.runs import RunFolder

TRACKS, TRACK_S = 16, 10.0
HELD_OUT_SHARE = 0.2  # three tracks each for validation and test, so that intervals exist
REFERENCE_TRACKS = 24
EVALUATION_CLIPS, EVALUATION_STEPS = 24, 25
STRENGTHS = (0.0, 0.5, 1.0)


@dataclass
class DemoResult:
    """What the demo made and measured."""

    run: Path
    adapter: Path
    audio: Path
    report: Path = Path()
    scores: list[list[str]] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    merge_note: str = ""
    timings: list[tuple[str, float]] = field(default_factory=list)


def run_demo(out: Path, *, style: str, steps: int, quiet: bool) -> DemoResult:
    """Run every stage into `out` and return what was measured."""
    from sa3lora.models import resolve_model
    from sa3lora.pipeline import SA3Pipeline
    from sa3lora.runs import RunFolder
    from sa3lora.tiny.styles import STYLES

    if style not in STYLES:
        raise UsageError(f"unknown style {style!r}; there are: {', '.join(STYLES)}")
    source = resolve_model("tiny")
    timings: list[tuple[str, float]] = []
    with _timed("tracks", timings):
        prompt = _write_tracks(out, style)
    run = RunFolder.create("style", root=out / "runs")
    result = DemoResult(run.path, run.adapter_path, out / "audio", timings=timings)
    with _timed("prep", timings):
        _prep(out, source, quiet=quiet)
    with _timed("train", timings):
        _train(out, run, source, steps=steps, quiet=quiet)
    pipeline = SA3Pipeline(source)
    with _timed("evaluate", timings):
        evaluation = _evaluate(pipeline, run, out, quiet=quiet)
    with _timed("generate", timings):
        full = _generate(pipeline, run.adapter_path, prompt, result.audio)
    with _timed("merge", timings):
        result.merge_note = _merge(out, run.adapter_path, prompt, full, result.audio)
    _fill(result, evaluation)
    return result


def _fill(result: DemoResult, evaluation: EvaluationResult) -> None:
    from sa3lora.cli.score_rows import score_rows

    result.scores = score_rows(evaluation)
    result.verdicts = evaluation.verdicts
    result.report = evaluation.folder / "report.html"


@contextmanager
def _timed(stage: str, timings: list[tuple[str, float]]) -> Iterator[None]:
    status(f"{stage} ...")
    start = time.monotonic()
    yield
    timings.append((stage, round(time.monotonic() - start, 1)))


def _write_tracks(out: Path, style: str) -> str:
    """Write tracks and reference, which share no seed, and return the style's prompt."""
    from sa3lora.tiny.pieces import HELD_OUT_SEED, write_style_folder

    paths = write_style_folder(style, out / "tracks", n=TRACKS, duration_s=TRACK_S)
    write_style_folder(
        style, out / "reference", n=REFERENCE_TRACKS, duration_s=TRACK_S,
        seed=HELD_OUT_SEED + 1000,
    )  # fmt: skip
    return paths[0].with_suffix(".txt").read_text(encoding="utf-8").strip()


def _prep(out: Path, source: ModelSource, *, quiet: bool) -> None:
    from datasets_prep.build import PrepOptions, prep

    with progress("prep", quiet=quiet) as advance:
        prep(
            out / "tracks", out / "latents", source=source,
            options=PrepOptions(validation=HELD_OUT_SHARE, test=HELD_OUT_SHARE),
            progress=lambda stage, done, total, name: advance(done, total=total, note=name),
        )  # fmt: skip


def _train(out: Path, run: RunFolder, source: ModelSource, *, steps: int, quiet: bool) -> None:
    from sa3lora.errors import RunError
    from sa3lora.recipe import load_recipe
    from sa3lora.training.events import TrainEvent
    from sa3lora.training.trainer import plan_training, train

    overrides = [f"data.root={out / 'latents'}", f"train.max_steps={steps}"]
    recipe = load_recipe("tiny_style", overrides)
    for line in plan_training(recipe, source=source, device="cpu").lines():
        status(line)
    with progress("train", total=steps, quiet=quiet) as advance:

        def show(event: TrainEvent) -> None:
            if event.text:
                status(f"step {event.step}: {event.text}")
            if event.kind in ("step", "note"):
                advance(event.step, note="" if event.loss is None else f"loss {event.loss:.4f}")

        trained = train(recipe, run=run, source=source, device="cpu", progress=show)
    if not trained.finished:
        raise RunError(f"{trained.signal} stopped the demo in training; start it again")


def _evaluate(pipeline: SA3Pipeline, run: RunFolder, out: Path, *, quiet: bool) -> EvaluationResult:
    from sa3lora.evaluation.embeddings import load_embedder
    from sa3lora.evaluation.evaluate import evaluate_adapter
    from sa3lora.evaluation.result import Settings

    settings = Settings(
        num_clips=EVALUATION_CLIPS, duration_s=TRACK_S, seed=0,
        num_inference_steps=EVALUATION_STEPS, guidance_scale=None,
    )  # fmt: skip
    with progress("evaluate", quiet=quiet) as advance:
        return evaluate_adapter(
            pipeline, [(run.adapter_path, 1.0)], reference=out / "reference",
            out=run.path / "evaluation", embedder=load_embedder("tiny"), settings=settings,
            dataset=out / "latents",
            progress=lambda stage, done, total: advance(done, total=total, note=stage),
        )  # fmt: skip


def _generate(pipeline: SA3Pipeline, adapter: Path, prompt: str, folder: Path) -> Tensor:
    """Write the same prompt and seed at each strength; return the sound at full strength."""
    from sa3lora.audio import write_audio

    folder.mkdir(parents=True)
    name = pipeline.load_adapter(adapter)
    for strength in STRENGTHS:
        pipeline.set_adapters([name], [strength])
        audio = _one(pipeline, prompt)
        write_audio(folder / f"strength_{strength:g}.wav", audio, pipeline.sample_rate)
    pipeline.unload_adapter(name)
    return audio


def _one(pipeline: SA3Pipeline, prompt: str) -> Tensor:
    return pipeline(prompt, duration_s=TRACK_S, seed=0).audio[0]


def _merge(out: Path, adapter: Path, prompt: str, full: Tensor, folder: Path) -> str:
    """Merge into the base, generate with the merged model and compare with the adapter's sound."""
    import torch

    from sa3lora.adapters.card import merged_card
    from sa3lora.adapters.checkpoint import merge_into_checkpoint
    from sa3lora.adapters.files import read_adapter
    from sa3lora.audio import write_audio
    from sa3lora.models import resolve_model
    from sa3lora.pipeline import SA3Pipeline

    base, loaded = resolve_model("tiny"), read_adapter(adapter)
    card = merged_card(
        [(str(adapter), loaded, 1.0)], name="merged", base=base.name, dit_hash=base.dit_hash
    )
    merge_into_checkpoint(
        [(loaded, 1.0)], base.folder, out=out / "merged", dtype=torch.float32, card=card
    )
    merged = SA3Pipeline(resolve_model(str(out / "merged")))
    audio = _one(merged, prompt)
    write_audio(folder / "merged.wav", audio, merged.sample_rate)
    if torch.equal(audio, full):
        return "the same sound, bit for bit"
    return f"largest difference of a sample {float((audio - full).abs().max()):.1e}"
