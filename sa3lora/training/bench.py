"""What a training step costs on this machine, beside a bare forward pass of the same model."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.inject import adapter_parameters, inject_adapter
from sa3lora.models.compiled import compile_blocks
from sa3lora.models.config import ModelConfig
from sa3lora.models.denoiser import Denoiser
from sa3lora.recipe import Recipe
from sa3lora.training.bench_step import BenchBatch, fastest_product, seconds_of, training_step
from sa3lora.training.frozen import check_base, frozen_bytes
from sa3lora.training.memory import (
    Recomputation,
    StepMemory,
    choose_recomputation,
    free_memory,
    wants_magnitudes,
)
from sa3lora.training.peak import PeakMemory
from sa3lora.training.precision import Precision, choose_precision
from sa3lora.training.trained_bytes import bytes_each
from sa3lora.training.validation import without_adapters

# How the forward pass that steps are compared with holds its weights.
_PLAIN = Precision(torch.float32, torch.float32)


@dataclass(frozen=True)
class BenchSettings:
    """What to measure.

    Attributes:
        num_frames: Of each clip.
        batch: Clips of a step.
        adapter: Type and rank; every layer carries it.
        mode: As `train.checkpointing`.
        compute: Type of matrix products.
        rounds: Steps that are measured, each beside a forward pass.
        compile: Whether the step's blocks are compiled, before anything is measured.
        base: As `train.base_dtype`; `auto` stores the base in the type of the products.
        optimizer: As `optim.name`, its other settings those of a recipe that says nothing.
    """

    num_frames: int
    batch: int
    adapter: AdapterConfig
    mode: str
    compute: torch.dtype
    rounds: int
    compile: bool = False
    base: str = "auto"
    optimizer: str = "adamw"

    @cached_property
    def recipe(self) -> Recipe:
        """A run whose steps are such as these."""
        dtype = str(self.compute).removeprefix("torch.")
        return Recipe.model_validate(
            {
                "adapter": {"type": self.adapter.type, "r": self.adapter.r},
                "optim": {"name": self.optimizer},
                "train": {"dtype": dtype, "base_dtype": self.base, "compile": self.compile},
            }
        )

    @property
    def precision(self) -> Precision:
        """How base and products are held."""
        return choose_precision(self.recipe.train, device="cpu")  # no type is left to the device


@dataclass(frozen=True)
class BenchResult:
    """Medians of what was measured; bytes and seconds.

    Attributes:
        forward_s: A bare float32 forward pass without adapters.
        step_s: Loss, backward pass and optimizer.
        first_s: The first step, with whatever is compiled in it.
        ratio: Median of `step / forward` of the same round.
        step_flops: Floating point operations of the step's products, recomputed ones included.
        ceiling_flops_per_s: The fastest matrix product of the model's shapes in the step's type.
        peak_bytes: Most that a step had in use, less what was before the first forward pass.
        forward_peak_bytes: The same of the forward pass.
        base_bytes: The frozen weights, which are there before, as the plan counts them.
        estimated_bytes: What the plan's memory model says that `peak_bytes` is.
        peak_is_exact: Whether the system can forget an earlier peak; else both are upper limits.
    """

    forward_s: float
    step_s: float
    first_s: float
    ratio: float
    step_flops: int
    ceiling_flops_per_s: float
    peak_bytes: int
    forward_peak_bytes: int
    base_bytes: int
    estimated_bytes: int
    peak_is_exact: bool
    num_frames: int
    recomputation: str

    @property
    def efficiency(self) -> float:
        """Share of the ceiling that a step reaches."""
        return self.step_flops / self.step_s / self.ceiling_flops_per_s

    def to_json(self) -> dict[str, Any]:
        """Give plain values, rates included."""
        return asdict(self) | {
            "steps_per_s": 1 / self.step_s,
            "frames_per_s": self.num_frames / self.step_s,
            "flops_per_s": self.step_flops / self.step_s,
            "efficiency": self.efficiency,
        }


def step_memory(
    config: ModelConfig, settings: BenchSettings, *, sizes: Mapping[str, int]
) -> StepMemory:
    """Describe a run's memory as the plan does; `sizes` are of its trained tensors."""
    with torch.device("meta"):
        denoiser = Denoiser(config)
    num_base = sum(parameter.numel() for parameter in denoiser.parameters())
    frozen = frozen_bytes(denoiser, settings.precision)
    assert config.dit is not None
    return StepMemory(
        dit=config.dit,
        num_base=num_base,
        num_trained=sum(sizes.values()),
        base_bytes=frozen.held / num_base,
        compute=settings.compute,
        magnitudes=wants_magnitudes(settings.adapter.type),
        context_tokens=config.max_prompt_tokens + 1,
        unpacking=frozen.unpacking,
        trained_bytes=bytes_each(settings.recipe.optim, sizes),
    )


def run_bench(
    make: Callable[[Precision], Denoiser],
    config: ModelConfig,
    settings: BenchSettings,
    *,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> BenchResult:
    """Measure steps and forward passes in turn, so that both meet the same machine.

    Args:
        make: Gives the base with its weights held in some way.
        config: Its configuration.
        settings: What to measure.
        device: Where.
        progress: Told how many rounds are done.

    Raises:
        RecipeError: If the adapter cannot be trained on such a base, or the optimizer cannot run.
    """
    check_base(settings.recipe)
    where = torch.device(device)
    denoiser = make(settings.precision)
    bare = denoiser if settings.precision == _PLAIN else make(_PLAIN)
    inject_adapter(denoiser, settings.adapter)
    trained = dict(adapter_parameters(denoiser))
    memory = step_memory(config, settings, sizes={n: p.numel() for n, p in trained.items()})
    how = choose_recomputation(
        settings.mode, memory, num_frames=settings.num_frames, batch=settings.batch,
        free=free_memory(where), bit_exact=where.type == "cpu",
    )  # fmt: skip
    denoiser.model.set_recomputation(num_blocks=how.num_blocks, frugal=how.frugal)
    if settings.compile:
        compile_blocks(denoiser.model)
    batch = _batch(config, settings, where)
    step = training_step(denoiser, trained, batch, optim=settings.recipe.optim)

    def forward() -> None:
        with torch.no_grad(), without_adapters(bare):
            batch.velocity(bare)

    peak = PeakMemory(where)
    forward_peak = peak.of(forward)
    # makes the optimizer's moments, which later steps have beside their activations
    first_s = seconds_of(step, where)
    step_peak = peak.of(step)
    times, ceilings = [], []
    rows = settings.batch * (settings.num_frames + memory.dit.num_memory_tokens)
    for done in range(settings.rounds):
        times.append((seconds_of(forward, where), seconds_of(step, where)))
        ceilings.append(fastest_product(config, rows=rows, compute=settings.compute, device=where))
        progress(done + 1)
    with FlopCounterMode(display=False) as counter:
        step()
    return BenchResult(
        forward_s=statistics.median(first for first, _ in times),
        step_s=statistics.median(second for _, second in times),
        first_s=first_s,
        ratio=statistics.median(second / first for first, second in times),
        step_flops=counter.get_total_flops(),
        ceiling_flops_per_s=statistics.median(ceilings),
        peak_bytes=step_peak,
        forward_peak_bytes=forward_peak,
        base_bytes=memory.weights - memory.unpacking,
        estimated_bytes=_estimate(memory, how, settings),
        peak_is_exact=peak.is_exact,
        num_frames=settings.num_frames * settings.batch,
        recomputation=how.describe(memory.dit.depth),
    )


def _batch(config: ModelConfig, settings: BenchSettings, device: torch.device) -> BenchBatch:
    return BenchBatch(
        config,
        num_frames=settings.num_frames,
        batch=settings.batch,
        compute=settings.compute,
        device=device,
    )


def _estimate(memory: StepMemory, how: Recomputation, settings: BenchSettings) -> int:
    # the adapter itself is there before the first forward pass
    growing = memory.trained - 4 * memory.num_trained
    acts = memory.unpacking + memory.activations(
        how, num_frames=settings.num_frames, batch=settings.batch
    )
    return growing + acts
