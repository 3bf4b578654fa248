"""Held-out and training losses of base and adapter on the same fixed tuples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from sa3lora.latents.format import LatentsDataset
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.probe import PairedDifference, ProbeSet, mean_by_track, paired_difference
from sa3lora.recipe import Recipe
from sa3lora.training.data import TrainingData

VALIDATION = "validation"
TRAINING = "train"
# Seeds of the tuples; apart from the run's own, so that runs of other seeds are comparable.
SEEDS = {VALIDATION: 1234, TRAINING: 4321}


class Probe(Protocol):
    """Fixed tuples, and the losses of a model on them."""

    @property
    def tracks(self) -> Sequence[str]:
        """The track of each tuple."""

    def losses(self, denoiser: Denoiser, text: Callable[[str], Tensor]) -> Tensor:
        """Return the loss of the model as it is on each tuple, (n,), float32, on the CPU."""


@contextmanager
def without_adapters(root: nn.Module) -> Iterator[None]:
    """Let every injected adapter rest: the model computes what its base computes."""
    layers: list[Any] = [each for each in root.modules() if hasattr(each, "enable_adapters")]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def evaluating(root: nn.Module) -> Iterator[None]:
    """Switch dropout of adapters off, and back to what it was."""
    training = {module: module.training for module in root.modules()}
    root.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


def validated_splits(data: TrainingData) -> dict[str, LatentsDataset]:
    """Give the clips to validate on by kind, held-out ones first if there are any."""
    held_out = {} if data.validation is None else {VALIDATION: data.validation}
    return {**held_out, TRAINING: data.train}


@dataclass(frozen=True)
class Validation:
    """Paired losses after some step, by kind of clips.

    Attributes:
        step: Number of finished steps.
        results: `validation` on held-out clips if there are any, `train` on training clips.
        by_track: Adapter's loss less the base's, one value a track in the order of their names.
    """

    step: int
    results: dict[str, PairedDifference]
    by_track: dict[str, tuple[float, ...]] = field(default_factory=dict, repr=False)

    @property
    def main(self) -> PairedDifference:
        """The held-out result, or that on training clips where nothing is held out."""
        return self.results.get(VALIDATION) or self.results[TRAINING]

    def scalars(self) -> dict[str, float]:
        """Give the scalars to log, by tag: `fit/` is what to look at first."""
        values: dict[str, float | None] = {}
        for kind, result in self.results.items():
            name = "held_out" if kind == VALIDATION else "training"
            values |= {
                f"fit/{name}_difference": result.difference,
                f"margins/{name}_difference_low": result.low,
                f"margins/{name}_difference_high": result.high,
                f"validation/{name}_base": result.base,
                f"validation/{name}_adapter": result.adapter,
            }
        return {tag: value for tag, value in values.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Give plain values for the manifest."""
        return {"step": self.step, **{kind: asdict(r) for kind, r in self.results.items()}}

    def __str__(self) -> str:
        """Say what was found on which clips."""
        kinds = {VALIDATION: "held-out clips", TRAINING: "training clips"}
        return "; ".join(f"{kinds[kind]}: {result}" for kind, result in self.results.items())


class Validator:
    """The probes of a run and the base model's losses on them, computed once."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        data: TrainingData,
        source: ModelSource,
        text: Callable[[str], Tensor],
        probes: Mapping[str, Probe] | None = None,
    ) -> None:
        """Choose the tuples; nothing is computed yet.

        `probes`, by kind of clips, are for a run that minimises something else than the flow loss.
        """
        self._text = text
        self._base: dict[str, Tensor] = {}
        self._probes: Mapping[str, Probe] = probes or {
            kind: ProbeSet.build(
                split,
                recipe.validation.tuples,
                seed=SEEDS[kind],
                objective=recipe.objective,
                model_config=source.config,
                max_frames=data.max_frames,
                frames_per_batch=recipe.data.frames_per_batch,
            )
            for kind, split in validated_splits(data).items()
        }

    def run(self, denoiser: Denoiser, step: int) -> Validation:
        """Compare the injected adapter with its base; draws nothing from global generators."""
        results, by_track = {}, {}
        with evaluating(denoiser):
            for kind, probe in self._probes.items():
                if kind not in self._base:
                    with without_adapters(denoiser):
                        self._base[kind] = probe.losses(denoiser, self._text)
                adapted = probe.losses(denoiser, self._text)
                results[kind] = paired_difference(self._base[kind], adapted, probe.tracks)
                change = adapted.double() - self._base[kind].double()
                by_track[kind] = tuple(mean_by_track(change, probe.tracks).tolist())
        return Validation(step=step, results=results, by_track=by_track)
