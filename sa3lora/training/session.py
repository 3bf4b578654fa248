"""Everything a run needs in memory before its first step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from sa3lora.adapters.config import LOKR, AdapterConfig
from sa3lora.adapters.files import read_adapter, write_adapter
from sa3lora.adapters.find import FILE_OF_A_RUN as ADAPTER_FILE
from sa3lora.adapters.find import find_adapter
from sa3lora.adapters.inject import (
    adapter_parameters,
    export_file,
    import_adapter_state,
    inject_adapter,
)
from sa3lora.adapters.lokr_folder import write_lokr_folder
from sa3lora.adapters.stacked import Stacked, fold_stack, missing_from_stack
from sa3lora.adapters.weights import CheckpointWeights
from sa3lora.errors import RecipeError
from sa3lora.models.compiled import compile_blocks, require_compiler
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.training.data import TextEmbeddings, TrainingData
from sa3lora.training.drift import drift_prompts
from sa3lora.training.frozen import check_base
from sa3lora.training.identity import run_identity
from sa3lora.training.loop import ResumableLoop
from sa3lora.training.offload import check_offload, offload_blocks
from sa3lora.training.optimizers import check_optim
from sa3lora.training.packing import uses_packing
from sa3lora.training.plan import Plan, make_plan
from sa3lora.training.precision import Precision, choose_precision
from sa3lora.training.preview import few_step_source, preview_prompts
from sa3lora.training.prior import prior_prompts
from sa3lora.training.processes import ProcessGroup
from sa3lora.training.sharding import Sharding, choose_sharding, shard_base
from sa3lora.training.start import read_stack, read_start, start_identity
from sa3lora.training.teacher_source import teacher_identity

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """What follows from recipe and model without loading weights."""

    recipe: Recipe
    source: ModelSource
    data: TrainingData
    precision: Precision
    device: torch.device
    processes: ProcessGroup
    plan: Plan
    adapter: AdapterConfig
    identity: dict[str, Any]
    stack: tuple[Stacked, ...] = ()
    sharding: Sharding | None = None
    few_step: ModelSource | None = None  # plays previews too

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute matrix products in the run's type."""
        enabled = self.precision.compute != torch.float32
        with torch.autocast(self.device.type, self.precision.compute, enabled=enabled):
            yield


def set_up(recipe: Recipe, *, source: ModelSource, accelerator: Accelerator) -> Setup:
    """Check a recipe against its model, dataset and machine, and make the plan.

    Raises:
        RecipeError: If the recipe asks for what this version cannot train.
        DatasetError: If there is no dataset, or it belongs to another model.
        AdapterError: If the adapter's patterns select nothing, or its rank does not fit a layer.
    """
    if not source.dit_hash:
        raise RecipeError(
            f"model: {source.name} is an autoencoder alone and cannot be trained. Name a model "
            "that generates, such as small-music-base."
        )
    check_optim(recipe.optim, adapter_type=recipe.adapter.type)
    if recipe.train.compile:
        require_compiler(accelerator.device.type)
    check_base(recipe)
    check_offload(recipe)
    processes = ProcessGroup(accelerator)
    device = accelerator.device
    precision = choose_precision(recipe.train, device=device.type)
    data = TrainingData(
        recipe,
        source=source,
        packed=uses_packing(recipe, device=device.type, compute=precision.compute),
        rank=processes.rank,
        world_size=processes.size,
    )
    adapter = AdapterConfig.from_section(recipe.adapter)
    sharding = choose_sharding(recipe, adapter, num_processes=processes.size)
    plan = make_plan(
        recipe,
        source=source,
        data=data,
        precision=precision,
        device=device.type,
        world_size=processes.size,
        sharding=sharding,
    )
    identity = run_identity(recipe, dataset=data.train.meta.fingerprint, dit_hash=source.dit_hash)
    stack = tuple(stacked for stacked, _, _ in read_stack(recipe.adapter, source))
    identity.pop("adapter.stack")
    identity |= start_identity(read_start(recipe.adapter, source), stack)
    identity |= teacher_identity(recipe, source)
    return Setup(
        recipe=recipe,
        source=source,
        data=data,
        precision=precision,
        device=device,
        processes=processes,
        plan=plan,
        adapter=adapter,
        identity=identity,
        stack=stack,
        sharding=sharding,
        few_step=few_step_source(recipe, source),
    )


def build_text(setup: Setup) -> TextEmbeddings:
    """Embed captions and preview prompts that are not cached yet; the encoder is then freed."""
    text = TextEmbeddings(setup.data, setup.source)
    prompts = setup.data.captions() | set(preview_prompts(setup.recipe, setup.data))
    prompts |= set(prior_prompts(setup.recipe.objective))
    if setup.recipe.validation.every and setup.recipe.validation.drift:
        prompts |= set(drift_prompts())
    with setup.processes.accelerator.main_process_first():
        added = text.build(sorted(prompts), device=setup.device.type)
    if added:
        logger.info("embedded %d of %d prompts", added, len(prompts))
    return text


def load_denoiser(setup: Setup) -> Denoiser:
    """Load the frozen base, fold the stack in, inject a fresh adapter or the one to go on from.

    Raises:
        RecipeError: If that adapter has another rank, scale or type than the recipe.
        AdapterMismatchError: If it belongs to another base.
    """
    recipe = setup.recipe
    away = recipe.train.offload or setup.sharding is not None
    device, precision = "cpu" if away else str(setup.device), setup.precision
    denoiser = setup.source.load_denoiser(
        device=device, dtype=precision.base, quantised=precision.quantised,
        runs_on=str(setup.device),
    )  # fmt: skip
    how = setup.plan.recomputation
    denoiser.model.set_recomputation(num_blocks=how.num_blocks, frugal=how.frugal)
    stored = CheckpointWeights(setup.source.weights_path)
    stack = read_stack(recipe.adapter, setup.source)
    bases = fold_stack(denoiser, [(adapter, s) for _, adapter, s in stack], stored)
    inject_adapter(denoiser, setup.adapter, seed=recipe.train.seed, bases=bases, stored=stored)
    if (start := read_start(recipe.adapter, setup.source)) is not None:
        import_adapter_state(denoiser, start.tensors)
        played = {one.name: (adapter, s) for one, adapter, s in stack}
        for note in missing_from_stack({f"{recipe.adapter.from_}": (start, 1.0), **played}):
            logger.warning(note)
    if recipe.train.offload:
        offload_blocks(denoiser, setup.device)
    for module in denoiser.modules():
        # Frozen layers stay in evaluation mode for good; only the adapter's dropout trains.
        module.training = isinstance(module, nn.Dropout)
    if setup.sharding is not None:
        with setup.autocast():
            shard_base(denoiser, setup.sharding, device=setup.device)
    if recipe.train.compile:
        compile_blocks(denoiser.model)
    return denoiser


def make_loop(setup: Setup, denoiser: Denoiser, *, folder: Path) -> ResumableLoop:
    """Make the loop over the adapter's tensors."""
    recipe = setup.recipe
    return ResumableLoop(
        dict(adapter_parameters(denoiser)),
        optim=recipe.optim,
        max_steps=recipe.train.max_steps,
        folder=folder,
        generators={},  # what a step draws follows from its number, see streams.py
        keep=recipe.checkpoint.keep,
        ema_decay=recipe.optim.ema_decay,
        processes=setup.processes,
        write_tensors=_adapter_writer(denoiser, setup.adapter),
        read_tensors=_adapter_reader(denoiser),
    )


def _adapter_writer(denoiser: Denoiser, config: AdapterConfig) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        adapter = export_file(denoiser, config)
        if config.type == LOKR:
            write_lokr_folder(folder, adapter)
        else:
            write_adapter(folder / ADAPTER_FILE, adapter)

    return write


def _adapter_reader(denoiser: Denoiser) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        import_adapter_state(denoiser, read_adapter(find_adapter(folder)).tensors)

    return read
