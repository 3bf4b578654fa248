"""Audio of base and adapter from the same seeds, made while a run goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sa3lora.adapters.bases import pin_bases
from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.inject import export_file
from sa3lora.adapters.weights import CheckpointWeights
from sa3lora.audio import write_audio
from sa3lora.errors import RecipeError, Sa3LoraError
from sa3lora.latents.format import Clip
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource, resolve_model
from sa3lora.models.text import folder_hash
from sa3lora.pipeline import SA3Pipeline
from sa3lora.recipe import AdapterSection, Recipe
from sa3lora.training.data import TextEmbeddings, TrainingData
from sa3lora.training.rng import undisturbed_rng
from sa3lora.training.start import read_stack
from sa3lora.training.tracking import Tracker
from sa3lora.training.validation import evaluating, without_adapters

logger = logging.getLogger(__name__)

_SEED = 1000
_DEFAULT_PROMPTS = 2
_LONGEST_DEFAULT_S = 20.0
_TRUTH = "00-ground-truth"


class Previewer:
    """Makes previews of a run; the base's and the ground truth are made once.

    The autoencoder is in memory only while it decodes, and the few-step model only while it plays.
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
        few_step: ModelSource | None = None,
    ) -> None:
        """Settle prompts and duration; nothing is computed yet."""
        self.prompts = preview_prompts(recipe, data)
        self.duration_s = preview_duration(recipe, source, data, few_step=few_step)
        self._truth = ground_truth(data, self.prompts)
        self._few_step = few_step
        self._section = recipe.adapter
        self._steps = recipe.preview.steps
        self._source = source
        self._text = text
        self._folder = folder
        self._device = device

    def has(self, step: int) -> bool:
        """Whether the adapter of a step was listened to."""
        return all(self._path(_adapter_label(step), n).is_file() for n in range(len(self.prompts)))

    def run(self, denoiser: Denoiser, step: int, *, tracker: Tracker) -> list[Path]:
        """Make the adapter's previews, and what belongs beside them if it is not there yet.

        Global random states are afterwards what they were before.

        Returns:
            The files that were written.
        """
        written: list[Path] = []
        with undisturbed_rng(), evaluating(denoiser), torch.no_grad():
            pipeline = self._pipeline(self._source, denoiser)
            written += self._write_truth(pipeline, tracker=tracker)
            base = self._paths("base")
            if not all(path.is_file() for path in base):
                with without_adapters(denoiser):
                    written += self._write(pipeline, base, tag="base", step=0, tracker=tracker)
            adapted = self._paths(_adapter_label(step))
            written += self._write(pipeline, adapted, tag="adapter", step=step, tracker=tracker)
            if self._few_step is not None:
                written += self._play_few_steps(self._few_step, denoiser, step, tracker=tracker)
        return written

    def _pipeline(self, source: ModelSource, denoiser: Denoiser | None = None) -> SA3Pipeline:
        pipeline = SA3Pipeline(
            source,
            device=self._device,
            dtype=torch.float16 if self._device.startswith("cuda") else torch.float32,
            denoiser=denoiser,
        )
        # Prompts are embedded already, and their encoder has left memory.
        pipeline.text_encoder = self._text  # type: ignore[assignment]
        return pipeline

    def _play_few_steps(
        self, source: ModelSource, denoiser: Denoiser, step: int, *, tracker: Tracker
    ) -> list[Path]:
        """Play the adapter on the few-step sibling, with that model's own steps and sampler."""
        pipeline = self._pipeline(source)
        load_trained(pipeline, denoiser, self._section, source=self._source)
        paths = self._paths(f"few-{_adapter_label(step)}")
        return self._write(pipeline, paths, tag="few_step", step=step, tracker=tracker)

    def _paths(self, label: str) -> list[Path]:
        return [self._path(label, n) for n in range(len(self.prompts))]

    def _path(self, label: str, number: int) -> Path:
        return self._folder / f"{number + 1:02d}-{label}.wav"

    def _write_truth(self, pipeline: SA3Pipeline, *, tracker: Tracker) -> list[Path]:
        """Decode a clip of the dataset, as the autoencoder lets it be heard."""
        path = self._folder / f"{_TRUTH}.wav"
        if self._truth is None or path.is_file():
            return []
        frames = max(
            1,
            round(self.duration_s * pipeline.sample_rate / self._source.config.downsampling_ratio),
        )
        audio = pipeline.decode(self._truth.latent[:, :frames].float())
        write_audio(path, audio, pipeline.sample_rate)
        tracker.audio(f"preview/{_TRUTH}", audio, sample_rate=pipeline.sample_rate, step=0)
        about = f"{self._truth.caption} (from its latents: what the autoencoder lets through)"
        tracker.text(f"preview/{_TRUTH}/caption", about, 0)
        return [path]

    def _write(
        self,
        pipeline: SA3Pipeline,
        paths: Sequence[Path],
        *,
        tag: str,
        step: int,
        tracker: Tracker,
    ) -> list[Path]:
        few = tag == "few_step"
        for number, (prompt, path) in enumerate(zip(self.prompts, paths, strict=True)):
            # One by one: a preview must not need more memory than training.
            output = pipeline(
                prompt,
                duration_s=self.duration_s,
                num_inference_steps=None if few else self._steps,
                seed=_SEED + number,
            )
            audio: Tensor = output.audio[0].float().cpu()
            write_audio(path, audio, output.sample_rate)
            name = f"preview/{number + 1:02d}/{tag}"
            tracker.audio(name, audio, sample_rate=output.sample_rate, step=step)
            if tag == "base":
                tracker.text(f"preview/{number + 1:02d}/prompt", prompt, 0)
        return list(paths)


def _adapter_label(step: int) -> str:
    return f"step-{step:08d}"


def load_trained(
    pipeline: SA3Pipeline, denoiser: Denoiser, section: AdapterSection, *, source: ModelSource
) -> None:
    """Load what a run is training into a pipeline of a sibling, as users would of its file.

    With it come the adapters that it is trained on top of; an `-xs` adapter keeps the directions
    of its own base, since its numbers mean another change in those of the sibling.

    Args:
        pipeline: Of a sibling, without adapters.
        denoiser: The model in training.
        section: The recipe's `adapter` section.
        source: The model that is trained.
    """
    for stacked, frozen, strength in read_stack(section, source):
        pipeline.stack.add(frozen, f"below {stacked.content_hash}", strength=strength)
    adapter = export_file(denoiser, AdapterConfig.from_section(section))
    adapter = pin_bases(adapter, CheckpointWeights(source.weights_path), carry=True)
    pipeline.stack.add(adapter, "adapter")


def ground_truth(data: TrainingData, prompts: Sequence[str]) -> Clip | None:
    """Choose the clip to hear beside the previews: of the first prompt if one has it as caption."""
    clips = data.train if data.validation is None else data.validation
    captions = clips.captions
    number = captions.index(prompts[0]) if prompts and prompts[0] in captions else 0
    return clips[number]


def few_step_source(recipe: Recipe, source: ModelSource) -> ModelSource | None:
    """Find the few-step sibling that the recipe names; its weights are not loaded.

    Without previews nothing is looked for, and None returned.

    Raises:
        RecipeError: If there is no such model, it is not a few-step model or not a sibling of the
            model that is trained, or one of them cannot play for as long as the recipe wants.
    """
    name = recipe.preview.few_step_model
    if not recipe.preview.every:
        return None
    if name is None:
        _check_duration(recipe, source)
        return None
    try:
        found = resolve_model(name)
    except Sa3LoraError as error:
        raise RecipeError(f"preview.few_step_model: {error}") from error
    if found.config.dit is None or not found.config.is_post_trained:
        raise RecipeError(
            f"preview.few_step_model: {found.name} is no few-step model. Name the post-trained "
            f"sibling of {source.name}, such as small-music of small-music-base"
        )
    different = found.config.dit != source.config.dit or found.ae_hash != source.ae_hash
    if different or folder_hash(found.text_folder()) != folder_hash(source.text_folder()):
        raise RecipeError(
            f"preview.few_step_model: {found.name} is no sibling of {source.name}: transformer, "
            "autoencoder or text encoder differ"
        )
    _check_duration(recipe, source, found)
    return found


def _check_duration(recipe: Recipe, *players: ModelSource) -> None:
    wanted = recipe.preview.duration_s
    for player in players:
        longest = player.config.max_duration_s
        if wanted is not None and wanted > longest:
            raise RecipeError(
                f"preview.duration_s: {player.name} makes at most {longest:g} s, got {wanted:g}"
            )


def preview_prompts(recipe: Recipe, data: TrainingData) -> list[str]:
    """Return the recipe's prompts, or else the first captions that are not empty."""
    if recipe.preview.prompts:
        return list(recipe.preview.prompts)
    clips = data.train if data.validation is None else data.validation
    return list(dict.fromkeys(caption for caption in clips.captions if caption))[:_DEFAULT_PROMPTS]


def preview_duration(
    recipe: Recipe,
    source: ModelSource,
    data: TrainingData,
    *,
    few_step: ModelSource | None = None,
) -> float:
    """Return the recipe's duration, or else that of a middling clip, at most 20 s."""
    if recipe.preview.duration_s is not None:
        return recipe.preview.duration_s
    durations = sorted(row.duration_s for row in data.train.rows)
    middling = durations[len(durations) // 2]
    players = (source, few_step or source)
    return min(middling, _LONGEST_DEFAULT_S, *(each.config.max_duration_s for each in players))
