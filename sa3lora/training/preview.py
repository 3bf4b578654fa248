"""Audio of base and adapter from the same seeds, made while a run goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sa3lora.audio import write_audio
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.pipeline import SA3Pipeline
from sa3lora.recipe import Recipe
from sa3lora.training.data import TextEmbeddings, TrainingData
from sa3lora.training.rng import undisturbed_rng
from sa3lora.training.tracking import Tracker
from sa3lora.training.validation import evaluating, without_adapters

logger = logging.getLogger(__name__)

_SEED = 1000
_DEFAULT_PROMPTS = 2
_LONGEST_DEFAULT_S = 20.0


class Previewer:
    """Makes previews of a run; the base's are made once.

    The autoencoder is in memory only while it decodes.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        source: ModelSource,
        data: TrainingData,
        text: TextEmbeddings,
        folder: Path,
        device: str,
    ) -> None:
        """Settle prompts and duration; nothing is computed yet."""
        self.prompts = preview_prompts(recipe, data)
        self.duration_s = preview_duration(recipe, source, data)
        self._steps = recipe.preview.steps
        self._source = source
        self._text = text
        self._folder = folder
        self._device = device

    def run(self, denoiser: Denoiser, step: int, *, tracker: Tracker) -> list[Path]:
        """Make the adapter's previews, and the base's if they are not there yet.

        Global random states are afterwards what they were before.

        Returns:
            The files that were written.
        """
        written: list[Path] = []
        with undisturbed_rng(), evaluating(denoiser), torch.no_grad():
            pipeline = SA3Pipeline(
                self._source,
                device=self._device,
                dtype=torch.float16 if self._device.startswith("cuda") else torch.float32,
                denoiser=denoiser,
            )
            # Prompts are embedded already, and their encoder has left memory.
            pipeline.text_encoder = self._text  # type: ignore[assignment]
            base = [self._path("base", n) for n in range(len(self.prompts))]
            if not all(path.is_file() for path in base):
                with without_adapters(denoiser):
                    written += self._write(pipeline, base, tag="base", step=step, tracker=tracker)
            adapted = [self._path(f"step-{step:08d}", n) for n in range(len(self.prompts))]
            written += self._write(pipeline, adapted, tag="adapter", step=step, tracker=tracker)
        return written

    def _path(self, name: str, number: int) -> Path:
        return self._folder / f"{number + 1:02d}-{name}.wav"

    def _write(
        self,
        pipeline: SA3Pipeline,
        paths: Sequence[Path],
        *,
        tag: str,
        step: int,
        tracker: Tracker,
    ) -> list[Path]:
        for number, (prompt, path) in enumerate(zip(self.prompts, paths, strict=True)):
            # One by one: a preview must not need more memory than training.
            output = pipeline(
                prompt,
                duration_s=self.duration_s,
                num_inference_steps=self._steps,
                seed=_SEED + number,
            )
            audio: Tensor = output.audio[0].float().cpu()
            write_audio(path, audio, output.sample_rate)
            name = f"preview/{number + 1:02d}/{tag}"
            tracker.audio(name, audio, sample_rate=output.sample_rate, step=step)
            if tag == "base":
                tracker.text(f"preview/{number + 1:02d}/prompt", prompt, step)
        return list(paths)


def preview_prompts(recipe: Recipe, data: TrainingData) -> list[str]:
    """Return the recipe's prompts, or else the first captions that are not empty."""
    if recipe.preview.prompts:
        return list(recipe.preview.prompts)
    clips = data.train if data.validation is None else data.validation
    return list(dict.fromkeys(caption for caption in clips.captions if caption))[:_DEFAULT_PROMPTS]


def preview_duration(recipe: Recipe, source: ModelSource, data: TrainingData) -> float:
    """Return the recipe's duration, or else that of a middling clip, at most 20 s."""
    if recipe.preview.duration_s is not None:
        return recipe.preview.duration_s
    durations = sorted(row.duration_s for row in data.train.rows)
    middling = durations[len(durations) // 2]
    return min(middling, _LONGEST_DEFAULT_S, source.config.max_duration_s)
