"""Evaluate an adapter against its base model: same prompts, same seeds, scores with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from sa3lora.adapters.files import read_adapter
from sa3lora.errors import EvaluationError
from sa3lora.evaluation.clap_score import clip_means, matched_scores
from sa3lora.evaluation.embeddings import (
    AudioPiece,
    EmbeddedSet,
    Embedder,
    check_duration,
    embed_pieces,
    embed_prompts,
)
from sa3lora.evaluation.frechet import Extrapolation
from sa3lora.evaluation.generation import (
    ClipPlan,
    Progress,
    generate_clips,
    plan_clips,
    read_clips,
)
from sa3lora.evaluation.held_out import open_held_out_loss
from sa3lora.evaluation.reference import (
    Reference,
    dataset_reference,
    default_prompts,
    folder_reference,
    is_dataset,
)
from sa3lora.evaluation.report import check_output, replaced_folder, write_report
from sa3lora.evaluation.result import AdapterUse, ClipPair, EvaluationResult, Settings
from sa3lora.evaluation.scores import (
    Context,
    Score,
    Sides,
    distance_scores,
    extrapolated_score,
    prompt_scores,
)
from sa3lora.latents.format import check_model
from sa3lora.latents.manifest import read_meta

if TYPE_CHECKING:
    from sa3lora.pipeline import SA3Pipeline

_SYSTEMS = ("base", "adapter")
# Below this many windows a Fréchet distance says more about n than about the music.
_FEW_WINDOWS = 200


@dataclass(frozen=True)
class Options:
    """What may be chosen beyond the clips.

    Attributes:
        max_windows: Windows of each reference piece at most, evenly spread.
        probe_tuples: Tuples of the held-out loss.
        replicates: Bootstrap replicates of the distances.
        allow_other_base: Take an adapter of another base model.
    """

    max_windows: int = 12
    probe_tuples: int = 64
    replicates: int = 200
    allow_other_base: bool = False


def evaluate_adapter(
    pipeline: SA3Pipeline,
    adapters: Sequence[tuple[Path, float]],
    *,
    reference: Path,
    out: Path,
    embedder: Embedder,
    settings: Settings,
    prompts: Sequence[str] | None = None,
    dataset: Path | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Score base and adapters on the same prompts and seeds, and write the report.

    Args:
        pipeline: The base model, without adapters; it is left like that.
        adapters: Files and strengths; together they are the second system.
        reference: A folder of audio, or a latents dataset, whose held-out clips are decoded.
        out: Folder of report and audio. An earlier evaluation there is replaced as a whole.
        embedder: Embedding model of the scores.
        settings: How the clips are made.
        prompts: Default: the captions of the reference, else of held-out clips of `dataset`.
        dataset: Latents dataset for the held-out loss. Default: the reference, if it is one.
        options: See `Options`.
        progress: Called with a stage, what is done and what there is.

    Raises:
        EvaluationError: If there is nothing to compare with, no prompt, or `out` is in use.
        DatasetError: If a dataset belongs to another autoencoder.
        AdapterError: If an adapter cannot be read or does not fit.
    """
    chosen = options or Options()
    check_output(out)
    _check_request(adapters, settings, pipeline)
    uses = tuple(AdapterUse(str(p), s, read_adapter(p).content_hash) for p, s in adapters)
    target = _open_reference(reference, pipeline)
    if dataset is None and is_dataset(reference):
        dataset = reference
    texts, told = (prompts, ()) if prompts is not None else default_prompts(target, dataset)
    plans = plan_clips(texts, settings)
    check_duration(embedder, settings.duration_s)
    held_out = open_held_out_loss(dataset, pipeline, num_tuples=chosen.probe_tuples)
    others = embed_pieces(
        _watched(target.pieces(), progress, stage="embed the reference", total=target.num_pieces),
        embedder,
        max_windows=chosen.max_windows,
    )
    with replaced_folder(out) as folder:
        losses = []
        for system in _SYSTEMS:
            with _loaded(pipeline, adapters if system == "adapter" else (), options=chosen):
                made = folder / system
                generate_clips(pipeline, plans, folder=made, settings=settings, progress=progress)
                losses += held_out.losses(pipeline)
        sides = _embed_sides(plans, folder, embedder, progress=progress)
        context = _context(sides, target, others=others, embedder=embedder)
        scores, lines = _score(sides, others, context, replicates=chosen.replicates)
        result = EvaluationResult(
            model=pipeline.source.name,
            adapters=uses,
            settings=settings,
            scores=(*held_out.scores(losses), *scores),
            clips=_clip_pairs(plans, sides),
            extrapolations=lines,
            notes=(*target.notes, *told, held_out.note, *_notes(sides, others, embedder=embedder)),
            folder=out,
        )
        write_report(result, folder)
    return result


def _check_request(
    adapters: Sequence[tuple[Path, float]], settings: Settings, pipeline: SA3Pipeline
) -> None:
    if not adapters:
        raise EvaluationError("there is no adapter to evaluate")
    if settings.num_clips < 2:
        raise EvaluationError(f"scores need at least 2 clips, got {settings.num_clips}")
    longest = pipeline.config.max_duration_s
    if not 0 < settings.duration_s <= longest:
        raise EvaluationError(
            f"{pipeline.source.name} makes up to {longest:g} s, got {settings.duration_s:g} s"
        )


def _open_reference(path: Path, pipeline: SA3Pipeline) -> Reference:
    if not is_dataset(path):
        return folder_reference(path)
    check_model(read_meta(path), pipeline.source)

    def decode(latent: Tensor) -> Tensor:
        return pipeline.decode(latent[None])[0]

    return dataset_reference(path, decode=decode)


def _watched(
    pieces: Iterator[AudioPiece], progress: Progress | None, *, stage: str, total: int
) -> Iterator[AudioPiece]:
    for number, piece in enumerate(pieces):
        if progress is not None:
            progress(stage, number, total)
        yield piece
    if progress is not None:
        progress(stage, total, total)


@contextmanager
def _loaded(
    pipeline: SA3Pipeline, adapters: Sequence[tuple[Path, float]], *, options: Options
) -> Iterator[None]:
    """Have adapters in the pipeline for the block, and the base model again after it."""
    names: list[str] = []
    try:
        for number, (path, strength) in enumerate(adapters):
            names.append(
                pipeline.load_adapter(
                    path,
                    adapter_name=f"evaluated-{number}",
                    strength=strength,
                    allow_other_base=options.allow_other_base,
                )
            )
        yield
    finally:
        for name in names:
            pipeline.unload_adapter(name)


def _embed_sides(
    plans: Sequence[ClipPlan], folder: Path, embedder: Embedder, *, progress: Progress | None
) -> Sides:
    base, adapter = (
        embed_pieces(
            _watched(
                read_clips(plans, folder / name), progress, stage=f"embed {name}", total=len(plans)
            ),
            embedder,
        )
        for name in _SYSTEMS
    )
    texts = [plan.prompt for plan in plans]
    return Sides(base, adapter, texts, embed_prompts(texts, embedder))


def _context(
    sides: Sides, reference: Reference, *, others: EmbeddedSet, embedder: Embedder
) -> Context:
    return Context(
        embedder=embedder.name,
        window_s=embedder.window_s,
        num_clips=len(sides.texts),
        num_windows=sides.base.num_windows,
        num_units=sides.num_units,
        reference=reference.name,
        reference_hash=reference.hash,
        reference_windows=others.num_windows,
        reference_tracks=others.num_tracks,
    )


def _score(
    sides: Sides, others: EmbeddedSet, context: Context, *, replicates: int
) -> tuple[list[Score], dict[str, Extrapolation]]:
    scores = distance_scores(sides, others, context=context, replicates=replicates)
    limit = extrapolated_score(sides, others, context=context)
    if limit is not None:
        scores.append(limit[0])
    scores += prompt_scores(sides, context=context)
    return scores, {} if limit is None else dict(zip(_SYSTEMS, limit[1:], strict=True))


def _clip_pairs(plans: Sequence[ClipPlan], sides: Sides) -> tuple[ClipPair, ...]:
    base, adapter = (
        matched_scores(clip_means(side.vectors, side.tracks), sides.prompts).tolist()
        for side in (sides.base, sides.adapter)
    )
    return tuple(
        ClipPair(
            prompt=plan.prompt,
            seed=plan.seed,
            base=f"base/{plan.file_name}",
            adapter=f"adapter/{plan.file_name}",
            base_clap=base[number],
            adapter_clap=adapter[number],
        )
        for number, plan in enumerate(plans)
    )


def _notes(sides: Sides, others: EmbeddedSet, *, embedder: Embedder) -> list[str]:
    """Say what weakens the scores."""
    notes = []
    size, clips = others.vectors.shape[1], len(sides.texts)
    fewest = min(sides.base.num_windows, others.num_windows)
    if fewest <= size:
        notes.append(
            f"{fewest} windows on a side are not more than the {size} dimensions of "
            f"{embedder.name}: the covariances are singular and FAD is far above its limit. "
            "Compare it only at the same n and reference."
        )
    elif fewest < _FEW_WINDOWS:
        notes.append(f"{fewest} windows on a side are few; FAD wants {_FEW_WINDOWS} or more.")
    if others.num_left_out:
        notes.append(
            f"Of long reference tracks only some windows are used, evenly spread: "
            f"{others.num_left_out} were left out."
        )
    short = sides.base.num_short + others.num_short
    if short:
        notes.append(
            f"{sides.base.num_short} of {clips} clips a system and {others.num_short} reference "
            f"pieces are shorter than the {embedder.window_s:g} s window of {embedder.name}, "
            "which fills them up in its own way."
        )
    if sides.num_units < clips:
        notes.append(
            f"{clips} clips come from {sides.num_units} prompts; intervals resample prompts."
        )
    return notes
