"""The held-out loss of base and adapter, on clips that training did not see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from sa3lora.evaluation.scores import Context, Score, loss_score
from sa3lora.latents.format import LatentsDataset, check_model
from sa3lora.probe import ProbeSet, paired_difference
from sa3lora.recipe import ObjectiveSection

if TYPE_CHECKING:
    from sa3lora.pipeline import SA3Pipeline


@dataclass(frozen=True)
class HeldOut:
    """A probe of a dataset's held-out clips, or the reason why there is none."""

    probe: ProbeSet | None
    note: str

    def losses(self, pipeline: SA3Pipeline) -> list[Tensor]:
        """Return the loss of each tuple with the pipeline as it is now, nothing without a probe."""
        if self.probe is None:
            return []
        return [self.probe.losses(pipeline.denoiser, _text_of(pipeline))]

    def scores(self, losses: Sequence[Tensor]) -> list[Score]:
        """Compare the losses of base and adapter, paired and by track; nothing without a probe."""
        if self.probe is None:
            return []
        base, adapter = losses
        dataset, tracks = self.probe.dataset, self.probe.tracks
        context = Context(
            embedder="velocity error",
            window_s=None,
            num_clips=len(tracks),
            num_windows=len(tracks),
            num_units=len(set(tracks)),
            reference=f"{dataset.root.name}:{dataset.split}",
            reference_hash=dataset.meta.fingerprint,
        )
        return [loss_score(paired_difference(base, adapter, tracks), context=context)]


def open_held_out_loss(root: Path | None, pipeline: SA3Pipeline, *, num_tuples: int) -> HeldOut:
    """Fix the tuples of a dataset's test split, or of validation where there is no test split.

    Args:
        root: The dataset, if there is one.
        pipeline: The model; the dataset must be made with its autoencoder.
        num_tuples: How many tuples.

    Raises:
        DatasetError: If the dataset belongs to another autoencoder, or cannot be read.
    """
    if root is None:
        return HeldOut(None, "There is no held-out loss: no latents dataset was given.")
    for split in ("test", "validation"):
        dataset = LatentsDataset.open(root, split=split)
        check_model(dataset.meta, pipeline.source)
        if len(dataset) == 0:
            continue
        probe = ProbeSet.build(
            dataset,
            num_tuples,
            seed=0,
            objective=ObjectiveSection(),
            model_config=pipeline.source.config,
        )
        note = f"The held-out loss is over the {split} split of {root.name}."
        if split == "validation":
            note += " If the training step was chosen by it, it flatters the adapter a little."
        return HeldOut(probe, note)
    reason = f"There is no held-out loss: {root.name} has no validation and no test clips."
    return HeldOut(None, reason)


def _text_of(pipeline: SA3Pipeline) -> Callable[[str], Tensor]:
    @cache
    def encode(caption: str) -> Tensor:
        return pipeline.text_encoder.encode([caption])[0]

    return encode
