"""What a run will do, told before it does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.sites import check_rank, select_sites, site_shapes
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.training.data import TrainingData
from sa3lora.training.frozen import frozen_bytes
from sa3lora.training.memory import (
    Recomputation,
    StepMemory,
    choose_recomputation,
    free_memory,
    wants_magnitudes,
)
from sa3lora.training.offload import offload_row
from sa3lora.training.precision import Precision
from sa3lora.training.sharding import Sharding, Share, share_of_base
from sa3lora.training.trained_bytes import bytes_each, trained_sizes


@dataclass(frozen=True)
class Plan:
    """The numbers of a run before its first step, in the order they are told."""

    rows: Mapping[str, str]
    num_sites: int
    num_parameters: int
    recomputation: Recomputation
    notes: tuple[str, ...] = field(default=())

    def lines(self) -> list[str]:
        """Give aligned lines of text."""
        width = max(len(name) for name in self.rows)
        shown = [f"{name:<{width}}  {value}" for name, value in self.rows.items()]
        return shown + [f"note: {note}" for note in self.notes]


@dataclass(frozen=True)
class BatchStatistics:
    """One epoch of batches, of all processes together.

    `largest_frames` are those of a clip in the largest batch, which has `largest_clips`.
    """

    num_batches: int
    clips_per_batch: float
    padding_waste: float
    largest_frames: int
    largest_clips: int
    num_singletons: int


def make_plan(
    recipe: Recipe,
    *,
    source: ModelSource,
    data: TrainingData,
    precision: Precision,
    device: str,
    world_size: int = 1,
    sharding: Sharding | None = None,
) -> Plan:
    """Work out what a run will do, without loading any weights.

    Raises:
        AdapterError: If the adapter's patterns select nothing, or its rank does not fit a layer.
    """
    with torch.device("meta"):
        denoiser = Denoiser(source.config)
    shapes = site_shapes(denoiser)
    adapter = AdapterConfig.from_section(recipe.adapter)
    sites = select_sites(shapes, adapter)
    check_rank({site: shapes[site] for site in sites}, adapter)
    sizes = trained_sizes(adapter, {site: shapes[site] for site in sites})
    num_parameters = sum(sizes.values())
    num_base = sum(parameter.numel() for parameter in denoiser.parameters())
    share = None if sharding is None else share_of_base(denoiser, sharding)
    batches = batch_statistics(data)
    assert source.config.dit is not None  # a Denoiser was built from it
    offload = recipe.train.offload
    frozen = frozen_bytes(denoiser, precision, offload=offload)
    memory = StepMemory(
        dit=source.config.dit,
        num_base=num_base if share is None else share.kept + share.gathered,
        num_trained=num_parameters,
        base_bytes=frozen.held / num_base,
        compute=precision.compute,
        magnitudes=wants_magnitudes(adapter.type),
        context_tokens=source.config.max_prompt_tokens + 1,
        unpacking=frozen.unpacking,
        trained_bytes=bytes_each(recipe.optim, sizes),
    )
    how = choose_recomputation(
        True if offload else recipe.train.checkpointing, memory, num_frames=batches.largest_frames,
        batch=batches.largest_clips, free=free_memory(torch.device(device)),
        bit_exact=device == "cpu",
    )  # fmt: skip
    rows = {
        "model": f"{source.name} ({num_base:,} parameters, {precision})",
        "device": f"{device}, {world_size} process{'' if world_size == 1 else 'es'}",
        **_share_rows(recipe, share, num_base, bytes_each=precision.base.itemsize),
        "adapter": _adapter_row(
            recipe, adapter, layers=f"{len(sites)} of {len(shapes)}", num_parameters=num_parameters
        ),
        **_start_rows(recipe),
        **_data_rows(recipe, data, batches, world_size=world_size),
        **({"offload": offload_row(frozen)} if offload else {}),
        "memory": _memory_row(memory, how, batches),
        "time": "measured over the first steps, then shown",
    }
    notes = (
        *_notes(recipe, source, data, batches, world_size=world_size),
        *_waiting(recipe, len(sizes), device=device),
    )
    return Plan(rows, len(sites), num_parameters, how, notes)


def _adapter_row(
    recipe: Recipe, adapter: AdapterConfig, *, layers: str, num_parameters: int
) -> str:
    return (
        f"{recipe.adapter.type}, r {adapter.r}, alpha {adapter.alpha:g}"
        f"{', starting from PiSSA' if adapter.init == 'pissa' else ''}: "
        f"{layers} layers, {num_parameters:,} trainable parameters "
        f"({num_parameters * 4 / 1e6:.1f} MB)"
    )


def _share_rows(
    recipe: Recipe, share: Share | None, num_base: int, *, bytes_each: int
) -> dict[str, str]:
    """Tell what each process holds of a base that is spread."""
    if share is None:
        return {}
    kept, gathered, whole = (
        _size(number * bytes_each) for number in (share.kept, share.gathered, num_base)
    )
    teacher = "" if recipe.distill.teacher is None else "; the teacher works whole in each, before"
    return {
        "base": (
            f"FSDP2: {kept} of {whole} in each process, and {gathered} gathered while it computes; "
            f"previews gather all of it{teacher}"
        )
    }


def _start_rows(recipe: Recipe) -> dict[str, str]:
    """Tell what is not trained from nothing, or not on the bare base."""
    rows = {}
    if recipe.adapter.from_ is not None:
        rows["goes on from"] = str(recipe.adapter.from_)
    if entries := recipe.adapter.stack_entries():
        named = ", ".join(f"{path} at {strength:g}" for path, strength in entries)
        rows["on top of"] = f"{named}, frozen in the weights"
    return rows


def batch_statistics(data: TrainingData) -> BatchStatistics:
    """Count the batches of the first epoch, with the silence behind their clips."""
    batcher = data.make_batcher()
    plans = [next(batcher) for _ in range(len(batcher))]
    slots = sum(plan.num_slots for plan in plans)
    real = sum(plan.num_real for plan in plans)
    largest = max(plans, key=lambda plan: plan.num_slots)
    return BatchStatistics(
        num_batches=len(plans),
        clips_per_batch=sum(len(plan.crops) for plan in plans) / len(plans),
        padding_waste=1.0 - real / slots,
        largest_frames=largest.num_slots // len(largest.crops),
        largest_clips=len(largest.crops),
        num_singletons=sum(len(plan.crops) == 1 for plan in plans),
    )


def _waiting(recipe: Recipe, num_tensors: int, *, device: str) -> list[str]:
    """Tell what keeps a device without work."""
    if recipe.optim.name != "prodigy" or device == "cpu":
        return []
    return [
        f"prodigy reads two numbers of each of the {num_tensors} trained tensors back in every "
        f"step, for which {device} is waited for; adamw, adamw8bit and muon read none"
    ]


def _data_rows(
    recipe: Recipe, data: TrainingData, batches: BatchStatistics, *, world_size: int
) -> dict[str, str]:
    train = data.train
    seconds = sum(row.duration_s for row in train.rows)
    tracks = len({row.source for row in train.rows})
    held_out = 0 if data.validation is None else len(data.validation)
    micro_batches = recipe.train.max_steps * recipe.train.grad_accum * world_size
    epochs = micro_batches / batches.num_batches
    return {
        "data": (
            f"{train.root}: {len(train)} clips of {tracks} tracks, {seconds / 60:.1f} min, "
            f"{sum(train.num_frames):,} frames; {held_out} validation clips"
        ),
        "batches": (
            f"{batches.num_batches} an epoch, {batches.clips_per_batch:.1f} clips each, at most "
            f"{recipe.data.frames_per_batch:,} frames, "
            + ("packed end to end" if data.packed else f"{batches.padding_waste:.1%} padding")
        ),
        "steps": (
            f"{recipe.train.max_steps:,}, {recipe.train.grad_accum * world_size} batches a step, "
            f"{epochs:.1f} epochs"
        ),
    }


def _memory_row(memory: StepMemory, how: Recomputation, batches: BatchStatistics) -> str:
    shape = {"num_frames": batches.largest_frames, "batch": batches.largest_clips}
    full, kept = memory.activations(Recomputation(), **shape), memory.activations(how, **shape)
    kept_of = "" if how == Recomputation() else f" ({_size(full)} if nothing were)"
    return (
        f"about {_size(memory.weights + memory.trained)} of weights and optimizer, {_size(kept)} "
        f"of activations: {how.describe(memory.dit.depth)}{kept_of}; an estimate, measured while "
        "it runs"
    )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _notes(
    recipe: Recipe,
    source: ModelSource,
    data: TrainingData,
    batches: BatchStatistics,
    *,
    world_size: int,
) -> list[str]:
    notes = []
    if recipe.distill.teacher is not None:
        notes.append(
            f"learns from {recipe.distill.teacher}: of the objective only silence_s counts, and "
            "losses are distances of one step from the teacher, those of validate too"
        )
    elif source.config.is_post_trained:
        notes.append(
            f"{source.name} is a few-step model, which the flow loss pulls away from few steps: "
            "train on its base, or give distill.teacher an adapter of its base"
        )
    if data.validation is None:
        reason = (
            "the dataset has no validation clips"
            if recipe.data.split == "train"
            else f"the run trains on the {recipe.data.split} split"
        )
        notes.append(f"no held-out loss, because {reason}")
    couples = recipe.objective.coupling != "none" and recipe.distill.teacher is None
    alone = recipe.train.grad_accum * world_size == 1  # a step of several batches is coupled whole
    if couples and alone and batches.num_singletons:
        notes.append(
            f"{batches.num_singletons} of {batches.num_batches} batches hold one clip, where "
            f"objective.coupling={recipe.objective.coupling} changes nothing"
        )
    longest = min(max(data.train.num_frames), data.max_frames) + data.extra_frames
    if longest > recipe.data.frames_per_batch:
        notes.append(
            f"the longest clip has {longest} frames with its silence, more than "
            f"data.frames_per_batch={recipe.data.frames_per_batch}: such clips make batches of "
            "their own"
        )
    longer = sum(frames > data.max_frames for frames in data.train.num_frames)
    if longer:
        notes.append(
            f"{longer} clips are longer than {data.max_frames * data.frame_s:.1f} s and are "
            "cropped at another place each epoch"
        )
    return notes
