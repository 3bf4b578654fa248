"""What a training step costs on this machine, beside a bare forward pass of the same model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.inject import adapter_parameters, inject_adapter
from sa3lora.models.config import ModelConfig
from sa3lora.models.denoiser import Denoiser
from sa3lora.recipe import ObjectiveSection, OptimSection
from sa3lora.training.memory import (
    Recomputation,
    StepMemory,
    choose_recomputation,
    free_memory,
    wants_magnitudes,
)
from sa3lora.training.optim import clip_gradients
from sa3lora.training.optimizers import make_optimizer
from sa3lora.training.peak import PeakMemory
from sa3lora.training.step import flow_step_loss
from sa3lora.training.validation import without_adapters

_PROMPT_TOKENS = 40
_OBJECTIVE = ObjectiveSection(silence_s=0.0, prompt_dropout=0.0)


@dataclass(frozen=True)
class BenchSettings:
    """What to measure.

    Attributes:
        num_frames: Of each clip.
        batch: Clips of a step.
        adapter: Type and rank; every layer carries it.
        mode: As `train.checkpointing`.
        compute: Type of matrix products; with bfloat16 the base is stored in it.
        rounds: Steps that are measured, each beside a forward pass.
    """

    num_frames: int
    batch: int
    adapter: AdapterConfig
    mode: str
    compute: torch.dtype
    rounds: int


@dataclass(frozen=True)
class BenchResult:
    """Medians of what was measured; bytes and seconds.

    Attributes:
        forward_s: A bare float32 forward pass without adapters.
        step_s: Loss, backward pass and optimizer.
        ratio: Median of `step / forward` of the same round.
        step_flops: Floating point operations of the step's products, recomputed ones included.
        ceiling_flops_per_s: The fastest matrix product of the model's shapes in the step's type.
        peak_bytes: Most that a step had in use, less what was before the first forward pass.
        forward_peak_bytes: The same of the forward pass.
        estimated_bytes: What the plan's memory model says that `peak_bytes` is.
        peak_is_exact: Whether the system can forget an earlier peak; else both are upper limits.
    """

    forward_s: float
    step_s: float
    ratio: float
    step_flops: int
    ceiling_flops_per_s: float
    peak_bytes: int
    forward_peak_bytes: int
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
    denoiser: Denoiser, config: ModelConfig, settings: BenchSettings, *, num_trained: int
) -> StepMemory:
    """Describe a run's memory as the plan does."""
    assert config.dit is not None
    return StepMemory(
        dit=config.dit,
        num_base=sum(p.numel() for p in denoiser.parameters()) - num_trained,
        num_trained=num_trained,
        base_bytes=denoiser.dtype.itemsize,
        compute=settings.compute,
        magnitudes=wants_magnitudes(settings.adapter.type),
        context_tokens=config.max_prompt_tokens + 1,
    )


def run_bench(
    make: Callable[[torch.dtype], Denoiser],
    config: ModelConfig,
    settings: BenchSettings,
    *,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> BenchResult:
    """Measure steps and forward passes in turn, so that both meet the same machine.

    Args:
        make: Gives the base with weights of a type.
        config: Its configuration.
        settings: What to measure.
        device: Where.
        progress: Told how many rounds are done.
    """
    where = torch.device(device)
    denoiser = make(settings.compute)
    bare = denoiser if settings.compute == torch.float32 else make(torch.float32)
    inject_adapter(denoiser, settings.adapter)
    trained = dict(adapter_parameters(denoiser))
    num_trained = sum(parameter.numel() for parameter in trained.values())
    memory = step_memory(denoiser, config, settings, num_trained=num_trained)
    how = choose_recomputation(
        settings.mode, memory, num_frames=settings.num_frames, batch=settings.batch,
        free=free_memory(where), bit_exact=where.type == "cpu",
    )  # fmt: skip
    denoiser.model.set_recomputation(num_blocks=how.num_blocks, frugal=how.frugal)
    batch = _Batch(config, settings, where)
    step = _step(denoiser, trained, batch)

    def forward() -> None:
        with torch.no_grad(), without_adapters(bare):
            batch.velocity(bare)

    peak = PeakMemory(where)
    forward_peak = peak.of(forward)
    step()  # makes the optimizer's moments, which later steps have beside their activations
    step_peak = peak.of(step)
    times, ceilings = [], []
    for done in range(settings.rounds):
        times.append((_seconds(forward, where), _seconds(step, where)))
        ceilings.append(_ceiling(config, settings, where))
        progress(done + 1)
    with FlopCounterMode(display=False) as counter:
        step()
    return BenchResult(
        forward_s=statistics.median(first for first, _ in times),
        step_s=statistics.median(second for _, second in times),
        ratio=statistics.median(second / first for first, second in times),
        step_flops=counter.get_total_flops(),
        ceiling_flops_per_s=statistics.median(ceilings),
        peak_bytes=step_peak,
        forward_peak_bytes=forward_peak,
        estimated_bytes=_estimate(memory, how, settings),
        peak_is_exact=peak.is_exact,
        num_frames=settings.num_frames * settings.batch,
        recomputation=how.describe(memory.dit.depth),
    )


def _step(
    denoiser: Denoiser, trained: Mapping[str, nn.Parameter], batch: _Batch
) -> Callable[[], None]:
    """Give a training step as the trainer takes it."""
    optimizer = make_optimizer(trained, OptimSection())

    def step() -> None:
        torch.autograd.backward(batch.loss(denoiser))
        clip_gradients(list(trained.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class _Batch:
    """Random clips of one length, without padding or silence."""

    def __init__(self, config: ModelConfig, settings: BenchSettings, device: torch.device) -> None:
        assert config.dit is not None
        generator = Generator().manual_seed(1)
        shape = (settings.batch, config.dit.io_channels, settings.num_frames)
        self.latents = torch.randn(shape, generator=generator)
        self._there = self.latents.to(device)
        self.mask = torch.ones(shape[0], shape[2], dtype=torch.bool)
        frame_s = config.downsampling_ratio / config.sample_rate
        self.seconds = torch.full((shape[0],), settings.num_frames * frame_s)
        tokens = min(_PROMPT_TOKENS, config.max_prompt_tokens)
        self.text = [
            torch.randn(tokens, config.cond_dim, generator=generator) for _ in range(settings.batch)
        ]
        self._config, self._device, self._compute = config, device, settings.compute
        self._generator = generator

    def loss(self, denoiser: Denoiser) -> Tensor:
        enabled = self._compute != torch.float32
        with torch.autocast(self._device.type, self._compute, enabled=enabled):
            return flow_step_loss(
                denoiser,
                self.latents,
                mask=self.mask,
                seconds=self.seconds,
                text=self.text,
                objective=_OBJECTIVE,
                model_config=self._config,
                generator=self._generator,
            ).total

    def velocity(self, denoiser: Denoiser) -> Tensor:
        t = torch.full((len(self.latents),), 0.5, device=self._device)
        conditioning = denoiser.condition(self.text, self.seconds)
        return denoiser.velocity(self._there, t, conditioning)


def _estimate(memory: StepMemory, how: Recomputation, settings: BenchSettings) -> int:
    # the adapter itself is there before the first forward pass
    growing = memory.trained - 4 * memory.num_trained
    acts = memory.activations(how, num_frames=settings.num_frames, batch=settings.batch)
    return growing + acts


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _ceiling(config: ModelConfig, settings: BenchSettings, device: torch.device) -> float:
    """Time the largest product of a block; operations a second."""
    assert config.dit is not None
    rows = settings.batch * (settings.num_frames + config.dit.num_memory_tokens)
    width, inner = config.dit.embed_dim, int(2 * config.dit.ff_mult * config.dit.embed_dim)
    left = torch.randn(rows, width, device=device, dtype=settings.compute)
    right = torch.randn(inner, width, device=device, dtype=settings.compute)
    seconds = min(_seconds(lambda: left @ right.T, device) for _ in range(5))
    return 2.0 * rows * width * inner / seconds
