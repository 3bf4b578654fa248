"""Scores of base and adapter on the same prompts and seeds, each with what it was measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sa3lora.evaluation.bootstrap import (
    Estimate,
    interval_from_replicates,
    mean_estimate,
    resample_counts,
)
from sa3lora.evaluation.clap_score import (
    change_scores,
    clip_means,
    diversity_replicates,
    matched_scores,
    shuffled_scores,
)
from sa3lora.evaluation.embeddings import EmbeddedSet
from sa3lora.evaluation.frechet import (
    Extrapolation,
    extrapolate_to_infinity,
    fit_gaussian,
    frechet_distance,
    frechet_replicates,
)
from sa3lora.evaluation.kernel import kernel_audio_distance, kernel_replicates
from sa3lora.probe import PairedDifference

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Context:
    """What a score was measured with; no score is shown without it.

    Attributes:
        embedder: Embedding model; for the loss, what was probed.
        window_s: Length of a window, None where there are none.
        num_clips: Clips (or probe tuples) a system.
        num_windows: Windows a system.
        num_units: Independent tracks or prompts, the unit of the interval.
        reference: Name of the reference, empty where the score needs none.
        reference_hash: Hash of its content.
        reference_windows: Windows of the reference.
        reference_tracks: Tracks of the reference.
    """

    embedder: str
    window_s: float | None
    num_clips: int
    num_windows: int
    num_units: int
    reference: str = ""
    reference_hash: str = ""
    reference_windows: int = 0
    reference_tracks: int = 0

    def __str__(self) -> str:
        """Give it in one line."""
        parts = [self.embedder]
        if self.window_s is not None:
            parts.append(f"{self.window_s:g} s windows")
        parts.append(f"n = {self.num_clips}")
        if self.num_windows != self.num_clips:
            parts.append(f"{self.num_windows} windows")
        parts.append(f"{self.num_units} independent")
        if self.reference_hash:
            size = ""
            if self.reference_windows:
                size = f" ({self.reference_windows} windows of {self.reference_tracks} tracks)"
            parts.append(f"reference {self.reference} {self.reference_hash[:12]}{size}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Score:
    """One measure of both systems; `difference` is adapter minus base."""

    key: str
    title: str
    better: Better
    base: Estimate | None
    adapter: Estimate | None
    difference: Estimate | None
    context: Context

    @property
    def verdict(self) -> str:
        """Say in one sentence what the difference shows, or that it shows nothing."""
        gap = self.difference
        if gap is None:
            return f"{self.title} could not be compared."
        if gap.low is None or gap.high is None:
            return f"{self.title}: {gap.value:+.4g}, without an interval, so nothing is shown."
        span = f"{gap.value:+.4g}, 95 % interval {gap.low:+.4g} to {gap.high:+.4g}"
        if not gap.tells_apart:
            return f"{self.title} cannot tell adapter and base apart ({span})."
        if self.better == "neither":
            return f"{self.title} is {'higher' if gap.value > 0 else 'lower'} ({span})."
        good = (gap.value < 0) == (self.better == "lower")
        return f"{self.title}: the adapter is {'better' if good else 'worse'} ({span})."


@dataclass(frozen=True)
class Sides:
    """Embeddings of both systems' clips: clip i of both has the same prompt and seed.

    Attributes:
        base: Embeddings of the base model's clips, one track a clip.
        adapter: The same for the adapter's.
        texts: Prompt of each clip.
        prompts: Embedding of each clip's prompt, (clips, D).
    """

    base: EmbeddedSet
    adapter: EmbeddedSet
    texts: list[str]
    prompts: Tensor

    @property
    def units(self) -> Tensor:
        """Number of each clip's prompt, (clips,): clips of one prompt are resampled together."""
        numbers = {text: number for number, text in enumerate(dict.fromkeys(self.texts))}
        return torch.tensor([numbers[text] for text in self.texts])

    @property
    def num_units(self) -> int:
        """Count the different prompts."""
        return len(set(self.texts))


@dataclass(frozen=True)
class _Replicated:
    """A score of both systems with its replicates from the same resampled prompts."""

    base: float
    adapter: float
    base_replicates: Tensor
    adapter_replicates: Tensor

    def score(
        self, key: str, title: str, better: Better, *, context: Context, num_tracks: int
    ) -> Score:
        fine = self.base_replicates.isfinite() & self.adapter_replicates.isfinite()
        base, adapter = self.base_replicates[fine], self.adapter_replicates[fine]
        # Where most replicates could not be scored there is no interval either.
        count = num_tracks if 2 * len(base) >= len(fine) else 1
        return Score(
            key,
            title,
            better,
            interval_from_replicates(self.base, base, num_tracks=count),
            interval_from_replicates(self.adapter, adapter, num_tracks=count),
            interval_from_replicates(self.adapter - self.base, adapter - base, num_tracks=count),
            context,
        )


def distance_scores(
    sides: Sides,
    reference: EmbeddedSet,
    *,
    context: Context,
    replicates: int = 200,
    seed: int = 0,
) -> list[Score]:
    """Compare both systems with the reference: FAD and KAD, resampling prompts and tracks."""
    generator = torch.Generator().manual_seed(seed)
    drawn = resample_counts(sides.num_units, replicates=replicates, generator=generator)
    tracks = resample_counts(reference.num_tracks, replicates=replicates, generator=generator)
    others = tracks[:, reference.tracks]
    counts = [drawn[:, sides.units[side.tracks]] for side in (sides.base, sides.adapter)]
    target = fit_gaussian(reference.vectors)
    base, adapter = sides.base.vectors, sides.adapter.vectors
    frechet = _Replicated(
        frechet_distance(fit_gaussian(base), target),
        frechet_distance(fit_gaussian(adapter), target),
        *(
            frechet_replicates(v, c, reference=reference.vectors, reference_counts=others)
            for v, c in zip((base, adapter), counts, strict=True)
        ),
    )
    kernel = _Replicated(
        kernel_audio_distance(base, reference.vectors),
        kernel_audio_distance(adapter, reference.vectors),
        *(
            kernel_replicates(v, c, reference=reference.vectors, reference_counts=others)
            for v, c in zip((base, adapter), counts, strict=True)
        ),
    )
    fewer = min(sides.num_units, reference.num_tracks)
    return [
        frechet.score("fad", "FAD", "lower", context=context, num_tracks=fewer),
        kernel.score("kad", "KAD", "lower", context=context, num_tracks=fewer),
    ]


def extrapolated_score(
    sides: Sides, reference: EmbeddedSet, *, context: Context, seed: int = 0
) -> tuple[Score, Extrapolation, Extrapolation] | None:
    """Extrapolate both Fréchet distances to infinitely many clips; None for fewer than 8 clips."""
    base, adapter = (
        extrapolate_to_infinity(side.vectors, reference.vectors, tracks=side.tracks, seed=seed)
        for side in (sides.base, sides.adapter)
    )
    if base is None or adapter is None:
        return None
    score = Score(
        "fad_infinity",
        "FAD at infinite n",
        "lower",
        Estimate(base.value, None, None, context.num_units),
        Estimate(adapter.value, None, None, context.num_units),
        Estimate(adapter.value - base.value, None, None, context.num_units),
        context,
    )
    return score, base, adapter


def prompt_scores(sides: Sides, *, context: Context, seed: int = 0) -> list[Score]:
    """Score how clips follow their prompts, how varied they are, and how far the adapter moves."""
    clips = [clip_means(side.vectors, side.tracks) for side in (sides.base, sides.adapter)]
    matched = [matched_scores(clip, sides.prompts) for clip in clips]
    scores = [_by_unit("clap", "CLAP score", sides, matched, context=context, seed=seed)]
    if sides.num_units > 1:
        margin = [
            own - shuffled_scores(clip, sides.prompts, texts=sides.texts)
            for own, clip in zip(matched, clips, strict=True)
        ]
        title = "CLAP score above other prompts"
        scores.append(_by_unit("clap_margin", title, sides, margin, context=context, seed=seed))
    if len(sides.texts) > 1:
        scores.append(_diversity(sides, clips, context=context, seed=seed))
    moved = _unit_means(change_scores(*clips), sides.units)
    change = mean_estimate(moved, seed=seed)
    title = "Change by the adapter"
    scores.append(Score("change", title, "neither", None, change, None, context))
    return scores


def _unit_means(values: Tensor, units: Tensor) -> Tensor:
    sums = torch.zeros(int(units.max()) + 1, dtype=torch.float64).index_add_(0, units, values)
    return sums / torch.bincount(units).double()


def _by_unit(
    key: str, title: str, sides: Sides, values: list[Tensor], *, context: Context, seed: int
) -> Score:
    base, adapter = (_unit_means(value, sides.units) for value in values)
    return Score(
        key,
        title,
        "higher",
        mean_estimate(base, seed=seed),
        mean_estimate(adapter, seed=seed),
        mean_estimate(adapter - base, seed=seed),
        context,
    )


def _diversity(sides: Sides, clips: list[Tensor], *, context: Context, seed: int) -> Score:
    generator = torch.Generator().manual_seed(seed)
    drawn = resample_counts(sides.num_units, replicates=1000, generator=generator)
    counts, once = drawn[:, sides.units], torch.ones(1, len(sides.texts))
    values = _Replicated(
        diversity_replicates(clips[0], once).item(),
        diversity_replicates(clips[1], once).item(),
        diversity_replicates(clips[0], counts),
        diversity_replicates(clips[1], counts),
    )
    return values.score(
        "diversity", "Diversity", "neither", context=context, num_tracks=sides.num_units
    )


def loss_score(paired: PairedDifference, *, context: Context) -> Score:
    """Take the held-out loss from a probe."""
    tracks = paired.num_tracks
    return Score(
        "loss",
        "Held-out loss",
        "lower",
        Estimate(paired.base, None, None, tracks),
        Estimate(paired.adapter, None, None, tracks),
        Estimate(paired.difference, paired.low, paired.high, tracks),
        context,
    )
