"""The work that `bench` measures: a training step, a forward pass, the fastest product."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor, nn

from sa3lora.models.config import ModelConfig
from sa3lora.models.denoiser import Denoiser
from sa3lora.recipe import ObjectiveSection, OptimSection
from sa3lora.training.optim import clip_gradients
from sa3lora.training.optimizers import make_optimizer
from sa3lora.training.step import flow_step_loss

_PROMPT_TOKENS = 40
_OBJECTIVE = ObjectiveSection(silence_s=0.0, prompt_dropout=0.0)


class BenchBatch:
    """Random clips of one length, without padding or silence."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_frames: int,
        batch: int,
        compute: torch.dtype,
        device: torch.device,
    ) -> None:
        """Draw clips and prompts for products in a type."""
        assert config.dit is not None
        generator = Generator().manual_seed(1)
        shape = (batch, config.dit.io_channels, num_frames)
        self.latents = torch.randn(shape, generator=generator)
        self._there = self.latents.to(device)
        self.mask = torch.ones(shape[0], shape[2], dtype=torch.bool)
        frame_s = config.downsampling_ratio / config.sample_rate
        self.seconds = torch.full((shape[0],), num_frames * frame_s)
        tokens = min(_PROMPT_TOKENS, config.max_prompt_tokens)
        self.text = [
            torch.randn(tokens, config.cond_dim, generator=generator) for _ in range(batch)
        ]
        self._config, self._device, self._compute = config, device, compute
        self._generator = generator

    def loss(self, denoiser: Denoiser) -> Tensor:
        """Give the released objective's loss."""
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
        """Give the velocity halfway to noise."""
        t = torch.full((len(self.latents),), 0.5, device=self._device)
        conditioning = denoiser.condition(self.text, self.seconds)
        return denoiser.velocity(self._there, t, conditioning)


def training_step(
    denoiser: Denoiser,
    trained: Mapping[str, nn.Parameter],
    batch: BenchBatch,
    *,
    optim: OptimSection,
) -> Callable[[], None]:
    """Give a training step as the trainer takes it."""
    optimizer = make_optimizer(trained, optim)

    def step() -> None:
        torch.autograd.backward(batch.loss(denoiser))
        clip_gradients(list(trained.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Time a piece of work until the device is done with it."""
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def fastest_product(
    config: ModelConfig, *, rows: int, compute: torch.dtype, device: torch.device
) -> float:
    """Time the largest product of a block, of `rows` tokens; give operations a second."""
    assert config.dit is not None
    width, inner = config.dit.embed_dim, int(2 * config.dit.ff_mult * config.dit.embed_dim)
    left = torch.randn(rows, width, device=device, dtype=compute)
    right = torch.randn(inner, width, device=device, dtype=compute)
    seconds = min(seconds_of(lambda: left @ right.T, device) for _ in range(5))
    return 2.0 * rows * width * inner / seconds
