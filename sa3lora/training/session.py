"""Everything a run needs in memory before its first step."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, nn

from sa3lora.adapters.compat import check_base
from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.files import read_adapter, write_adapter
from sa3lora.adapters.inject import (
    adapter_parameters,
    export_file,
    import_adapter_state,
    inject_adapter,
)
from sa3lora.adapters.sites import site_shapes
from sa3lora.errors import RecipeError
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.recipe import AdapterSection, Recipe
from sa3lora.training.data import TextEmbeddings, TrainingData
from sa3lora.training.identity import run_identity
from sa3lora.training.loop import ResumableLoop
from sa3lora.training.plan import Plan, make_plan
from sa3lora.training.precision import Precision, choose_precision
from sa3lora.training.preview import preview_prompts
from sa3lora.training.processes import ProcessGroup

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter.safetensors"


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
    processes = ProcessGroup(accelerator)
    device = accelerator.device
    data = TrainingData(recipe, source=source, rank=processes.rank, world_size=processes.size)
    precision = choose_precision(recipe.train, device=device.type)
    plan = make_plan(
        recipe,
        source=source,
        data=data,
        precision=precision,
        device=device.type,
        world_size=processes.size,
    )
    identity = run_identity(recipe, dataset=data.train.meta.fingerprint, dit_hash=source.dit_hash)
    if recipe.adapter.from_ is not None:
        identity["adapter.from"] = _start_hash(recipe.adapter, recipe.adapter.from_, source)
    return Setup(
        recipe=recipe,
        source=source,
        data=data,
        precision=precision,
        device=device,
        processes=processes,
        plan=plan,
        adapter=AdapterConfig.from_section(recipe.adapter),
        identity=identity,
    )


def build_text(setup: Setup) -> TextEmbeddings:
    """Embed captions and preview prompts that are not cached yet; the encoder is then freed."""
    text = TextEmbeddings(setup.data, setup.source)
    prompts = setup.data.captions() | set(preview_prompts(setup.recipe, setup.data))
    with setup.processes.accelerator.main_process_first():
        added = text.build(sorted(prompts), device=setup.device.type)
    if added:
        logger.info("embedded %d of %d prompts", added, len(prompts))
    return text


def load_denoiser(setup: Setup) -> Denoiser:
    """Load the frozen base and inject a fresh adapter, or the one that the recipe goes on from.

    Raises:
        RecipeError: If that adapter has another rank, scale or type than the recipe.
        AdapterMismatchError: If it belongs to another base.
    """
    recipe = setup.recipe
    device = str(setup.device)
    denoiser = setup.source.load_denoiser(device=device, dtype=setup.precision.base)
    how = setup.plan.recomputation
    denoiser.model.set_recomputation(num_blocks=how.num_blocks, frugal=how.frugal)
    inject_adapter(denoiser, setup.adapter, seed=recipe.train.seed)
    if recipe.adapter.from_ is not None:
        import_adapter_state(denoiser, read_adapter(recipe.adapter.from_).tensors)
    for module in denoiser.modules():
        # Frozen layers stay in evaluation mode for good; only the adapter's dropout trains.
        module.training = isinstance(module, nn.Dropout)
    if recipe.train.compile:
        denoiser.model.compile(dynamic=True)
    return denoiser


def make_loop(setup: Setup, denoiser: Denoiser, *, folder: Path) -> tuple[ResumableLoop, Generator]:
    """Make the loop over the adapter's tensors and the generator that its steps draw from."""
    recipe = setup.recipe
    generator = Generator().manual_seed(stream_seed(recipe.train.seed, setup.processes.rank))
    loop = ResumableLoop(
        dict(adapter_parameters(denoiser)),
        optim=recipe.optim,
        max_steps=recipe.train.max_steps,
        folder=folder,
        generators={"steps": generator},
        keep=recipe.checkpoint.keep,
        processes=setup.processes,
        write_tensors=_adapter_writer(denoiser, setup.adapter),
        read_tensors=_adapter_reader(denoiser),
    )
    return loop, generator


def stream_seed(seed: int, rank: int) -> int:
    """Derive the seed of one process' draws; streams of different seeds and ranks never meet."""
    digest = hashlib.sha256(f"steps {seed} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _adapter_writer(denoiser: Denoiser, config: AdapterConfig) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        write_adapter(folder / ADAPTER_FILE, export_file(denoiser, config))

    return write


def _adapter_reader(denoiser: Denoiser) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        import_adapter_state(denoiser, read_adapter(folder / ADAPTER_FILE).tensors)

    return read


def _start_hash(section: AdapterSection, path: Path, source: ModelSource) -> str:
    """Check that a run can go on from an adapter, before anything is loaded; give its hash."""
    adapter = read_adapter(path)
    ours = AdapterConfig.from_section(section)
    found = (adapter.config.type, adapter.config.r, adapter.config.alpha)
    wanted = (ours.type, ours.r, ours.alpha)
    if found != wanted:
        raise RecipeError(
            f"adapter.from: {path} is {found[0]} with r {found[1]} and alpha {found[2]:g}, the "
            f"recipe wants {wanted[0]} with r {wanted[1]} and alpha {wanted[2]:g}. Change one to "
            "fit the other."
        )
    with torch.device("meta"):
        shapes = site_shapes(Denoiser(source.config))
    check_base(adapter, name=source.name, dit_hash=source.dit_hash, shapes=shapes, label=str(path))
    return adapter.content_hash
