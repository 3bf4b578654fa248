"""What an adapter learns of a left-out style, through the very commands that a user types."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sa3lora.audio import read_audio
from sa3lora.errors import RunError
from sa3lora.models.clap import TinyClap
from sa3lora.pipeline import SA3Pipeline
from sa3lora.tiny.measure.clap import solo_prompts
from sa3lora.tiny.measure.generation import generate_many
from sa3lora.tiny.measure.outcome import Outcome, ceiling, fact, floor
from sa3lora.tiny.pieces import HELD_OUT_SEED, write_style_folder
from sa3lora.tiny.shape import SAMPLE_RATE

STYLES_MEASURED = ("echo dub", "lofi tape")
_TRACKS, _TRACK_S = 18, 10.0  # three each are held out for validation and test: 12 to train on
_REFERENCE_TRACKS = 64  # 128 windows of 5 s
_CLIPS = 64
_STEPS = 500  # about 3 minutes on two cores
_SAMPLING = 25
_SEEDS = (1, 2, 3)
_STACK_STRENGTH = 0.7


@dataclass(frozen=True)
class StyleRun:
    """One trained adapter with its scores, and the sounds that both systems made."""

    adapter: Path
    scores: dict[str, Any]
    base: Tensor
    adapted: Tensor


class StyleWork:
    """The folders of one style: tracks, unseen reference, dataset and runs."""

    def __init__(self, folder: Path, style: str, *, model: str) -> None:
        """Write tracks and reference, which share no seed, and prepare the dataset."""
        self.folder = folder / style.replace(" ", "_")
        self.style, self.model = style, model
        first = HELD_OUT_SEED + 50_000
        paths = write_style_folder(
            style, self.folder / "tracks", n=_TRACKS, duration_s=_TRACK_S, seed=first
        )
        write_style_folder(
            style, self.folder / "reference", n=_REFERENCE_TRACKS, duration_s=_TRACK_S,
            seed=first + 1000,
        )  # fmt: skip
        self.prompt = paths[0].with_suffix(".txt").read_text(encoding="utf-8").strip()
        self._call("prep", "tracks", "-o", "latents", "--model", model,
                   "--validation", "0.17", "--test", "0.17")  # fmt: skip

    def train(self, seed: int) -> StyleRun:
        """Train one adapter and evaluate it."""
        name = f"seed{seed}"
        self._call("train", "tiny_style", "data.root=latents", f"train.seed={seed}",
                   f"model={self.model}", f"train.max_steps={_STEPS}", "--name", name)  # fmt: skip
        self._call("evaluate", f"runs/{name}", "--reference", "reference", "--dataset", "latents",
                   "--model", self.model, "--n", str(_CLIPS), "--steps", str(_SAMPLING),
                   "--duration-s", str(_TRACK_S))  # fmt: skip
        run = self.folder / "runs" / name
        result = json.loads((run / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
        sounds = {
            system: torch.stack(
                [read_audio(run / "evaluation" / clip[system])[0] for clip in result["clips"]]
            )
            for system in ("base", "adapter")
        }
        scores = {score["key"]: score for score in result["scores"]}
        return StyleRun(run / "adapter.safetensors", scores, sounds["base"], sounds["adapter"])

    def reference(self) -> Tensor:
        """Read the unseen tracks of the style, (n, 2, N)."""
        return torch.stack(
            [read_audio(path)[0] for path in sorted((self.folder / "reference").glob("*.wav"))]
        )

    def _call(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "sa3lora", *arguments, "--quiet"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"sa3lora {' '.join(arguments)} failed:\n{done.stderr.strip()}")


def embed(clips: Tensor, clap: TinyClap) -> Tensor:
    """Embed the first window of sounds (n, 2, N), (n, D)."""
    length = round(clap.window_s * SAMPLE_RATE)
    return clap.embed_audio([clip.mean(dim=0)[:length] for clip in clips])


def style_similarity(clips: Tensor, reference: Tensor, clap: TinyClap) -> float:
    """Mean cosine between sounds and the mean direction of a style's tracks."""
    direction = torch.nn.functional.normalize(embed(reference, clap).mean(dim=0), dim=0)
    return float((embed(clips, clap) @ direction).mean())


def adherence(pipeline: SA3Pipeline, clap: TinyClap) -> float:
    """Mean score of solos with their own prompt above that with all prompts."""
    prompts = solo_prompts()
    clips, _ = generate_many(pipeline, prompts * 2, seconds=6.0, seed=9000)
    scores = embed(clips, clap) @ clap.embed_text(prompts * 2).T
    return float(scores.diag().mean() - scores.mean())


def measure_style(pipeline: SA3Pipeline, clap: TinyClap, folder: Path) -> list[Outcome]:
    """Train three adapters of one style and one of another, compare each with the base."""
    model = str(pipeline.source.folder)
    works = [StyleWork(folder, style, model=model) for style in STYLES_MEASURED]
    runs = [works[0].train(seed) for seed in _SEEDS]
    other = works[1].train(_SEEDS[0])
    reference = works[0].reference()
    setting = (
        f"{works[0].style}, 12 tracks of {_TRACK_S:g} s, {_STEPS} steps, median of seeds "
        f"{', '.join(map(str, _SEEDS))}; {_CLIPS} clips of {_TRACK_S:g} s, {_SAMPLING} sampling "
        f"steps, against {_REFERENCE_TRACKS} unseen tracks"
    )
    upper = median(run.scores["loss"]["difference"]["high"] for run in runs)
    distances = [
        run.scores["fad"]["adapter"]["value"] / run.scores["fad"]["base"]["value"] for run in runs
    ]
    gains = [
        style_similarity(run.adapted, reference, clap) - style_similarity(run.base, reference, clap)
        for run in runs
    ]
    return [
        ceiling("held-out loss, upper end of the difference", upper, 0.0, conditions=setting),
        ceiling("FAD, share of the base's", median(distances), 0.75, conditions=setting),
        fact("FAD of the base", runs[0].scores["fad"]["base"]["value"], conditions=setting),
        floor("CLAP similarity to the style, gain", median(gains), 0.0, conditions=setting),
        _adherence_kept(pipeline, clap, runs),
        *_measure_stack(pipeline, clap, works, (runs[0].adapter, other.adapter)),
    ]


def _adherence_kept(pipeline: SA3Pipeline, clap: TinyClap, runs: list[StyleRun]) -> Outcome:
    before = adherence(pipeline, clap)
    after = []
    for run in runs:
        name = pipeline.load_adapter(run.adapter)
        after.append(adherence(pipeline, clap) / before)
        pipeline.unload_adapter(name)
    return floor(
        "prompt adherence kept on other prompts", median(after), 0.8,
        conditions="24 solos of the twelve timbres, own prompt above all, median of three seeds",
    )  # fmt: skip


def _measure_stack(
    pipeline: SA3Pipeline,
    clap: TinyClap,
    works: list[StyleWork],
    adapters: tuple[Path, Path],
) -> list[Outcome]:
    prompts = [work.prompt for work in works] * 8
    base, _ = generate_many(pipeline, prompts, seconds=6.0, seed=11_000)
    names = []
    for number, path in enumerate(adapters):
        name = f"stack{number}"
        names.append(pipeline.load_adapter(path, adapter_name=name, strength=_STACK_STRENGTH))
    stacked, _ = generate_many(pipeline, prompts, seconds=6.0, seed=11_000)
    for name in names:
        pipeline.unload_adapter(name)
    return [
        floor(
            f"two styles stacked at {_STACK_STRENGTH}, gain of similarity to {work.style}",
            style_similarity(stacked, work.reference(), clap)
            - style_similarity(base, work.reference(), clap),
            0.0, conditions="16 clips of 6 s, prompts of both styles",
        )
        for work in works
    ]  # fmt: skip
