"""Clips and text embeddings of a run, both read from caches on disk."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from torch import Tensor

from sa3lora.errors import DatasetError, RecipeError
from sa3lora.latents.batching import Batch, BatchPlan, LengthBatcher, collate
from sa3lora.latents.format import LatentsDataset, check_model
from sa3lora.latents.schema import TEXT_FOLDER
from sa3lora.latents.text_cache import TextCache
from sa3lora.models.source import ModelSource
from sa3lora.models.text import folder_hash
from sa3lora.recipe import Recipe

_EMBEDDINGS_IN_MEMORY = 4096


class TrainingData:
    """The clips that a run trains and validates on, and the order they come in."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        source: ModelSource,
        packed: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Open the dataset of a recipe; `packed` batches lie end to end.

        Raises:
            RecipeError: If the recipe names no dataset.
            DatasetError: If there is none, it has no clips, or it belongs to another model.
        """
        root = recipe.data.root
        if root is None:
            raise RecipeError(
                "data.root: the recipe names no dataset. Give the folder that `sa3lora prep` "
                "wrote: data.root=DATASET"
            )
        self.train = LatentsDataset.open(root, split=recipe.data.split)
        check_model(self.train.meta, source)
        if len(self.train) == 0:
            raise DatasetError(
                f"{root} has no clip in its {recipe.data.split} split. "
                "Choose another with data.split, or prepare more audio."
            )
        held_out = LatentsDataset.open(root, split="validation")
        # Clips that are trained on prove nothing.
        self.validation = held_out if recipe.data.split == "train" and len(held_out) else None
        self.frame_s = source.config.downsampling_ratio / source.config.sample_rate
        self.max_frames = self._max_frames(recipe, source)
        self.extra_frames = self._room_for_silence(recipe.objective.silence_s)
        self._silence_frames = recipe.objective.silence_s / self.frame_s
        self.packed = packed
        self._frames_per_batch = recipe.data.frames_per_batch
        self._seed = recipe.train.seed
        self.batcher = self.make_batcher(rank=rank, world_size=world_size)
        self._position = self.batcher.state_dict()

    def make_batcher(self, *, rank: int = 0, world_size: int = 1) -> LengthBatcher:
        """Make the batches of one process from their beginning."""
        return LengthBatcher(
            self.train.num_frames,
            frames_per_batch=self._frames_per_batch,
            seed=self._seed,
            max_frames=self.max_frames,
            silence_frames=self._silence_frames,
            packed=self.packed,
            rank=rank,
            world_size=world_size,
        )

    def _room_for_silence(self, mean_s: float) -> int:
        # The mean of what is drawn; a clip that is nearly at the limit cannot grow so much.
        lengths = sorted(self.train.num_frames)
        middling = lengths[len(lengths) // 2]
        return min(round(mean_s / self.frame_s), max(0, self.max_frames - middling))

    def _max_frames(self, recipe: Recipe, source: ModelSource) -> int:
        limit = source.config.sample_size // source.config.downsampling_ratio
        wanted = recipe.data.max_duration_s
        if wanted is None:
            return limit
        if wanted > source.config.max_duration_s:
            raise RecipeError(
                f"data.max_duration_s: {source.name} makes at most "
                f"{source.config.max_duration_s:g} s, got {wanted:g}"
            )
        return max(1, round(wanted / self.frame_s))

    def next_round(self) -> list[BatchPlan]:
        """Go on by one batch of every process and tell what they are, by rank.

        The position stays where it is until `take` is told that they were trained on.
        """
        return self.batcher.next_round()

    def take(self, plan: BatchPlan) -> None:
        """Set the position behind a batch, which is trained on now."""
        self._position = plan.state

    def rewind(self) -> None:
        """Go back to the position: what was only looked at comes again."""
        self.batcher.load_state_dict(self._position)

    def next_batch(self) -> Batch:
        """Read the next batch of this process, and take it."""
        plan = next(self.batcher)
        self.take(plan)
        return self.read(plan)

    def read(self, plan: BatchPlan) -> Batch:
        """Read a batch, padded with silence.

        Some of the silence behind each clip counts as real, as `objective.silence_s` says.
        """
        return collate(
            [self.train[crop.index] for crop in plan.crops],
            silence=self.train.silence,
            sample_rate=self.train.meta.sample_rate,
            ratio=self.train.meta.ratio,
            crops=plan.crops,
        )

    def state_dict(self) -> dict[str, Any]:
        """Give the position in the data, as JSON values."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position."""
        self.batcher.load_state_dict(state)
        self._position = self.batcher.state_dict()

    def captions(self) -> set[str]:
        """Collect every caption that training or validation will ask for."""
        found = set(self.train.captions)
        if self.validation is not None:
            found |= set(self.validation.captions)
        return found


class TextEmbeddings:
    """Token embeddings by prompt; the encoder is loaded only if some are missing on disk."""

    def __init__(self, data: TrainingData, source: ModelSource) -> None:
        """Point at the dataset's cache."""
        self._source = source
        self.text_hash = folder_hash(source.text_folder())
        self._cache = TextCache(data.train.root / TEXT_FOLDER, text_hash=self.text_hash)
        self._read = lru_cache(_EMBEDDINGS_IN_MEMORY)(self._cache.get)

    def build(self, prompts: Iterable[str], *, device: str = "cpu") -> int:
        """Embed what is missing and let go of the encoder; return how many that were."""
        missing = self._cache.missing(prompts)
        if not missing:
            return 0
        # The encoder's memory is free again when this function returns.
        return self._cache.build(missing, self._source.load_text_encoder(device=device))

    def __call__(self, prompt: str) -> Tensor:
        """Give the tokens (L, D) of a prompt that `build` has seen."""
        return self._read(prompt)

    def encode(self, prompts: list[str]) -> list[Tensor]:
        """Stand in for a text encoder in a pipeline."""
        return [self._read(prompt) for prompt in prompts]
