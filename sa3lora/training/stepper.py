"""One optimizer step of a run: its micro-batches, their losses, the update, the scalars."""

from __future__ import annotations

import time

import torch
from torch import Generator

from sa3lora.models.denoiser import Denoiser
from sa3lora.training.data import TextEmbeddings
from sa3lora.training.loop import ResumableLoop, Update
from sa3lora.training.meter import Meter
from sa3lora.training.session import Setup
from sa3lora.training.step import StepLoss, flow_step_loss, require_finite


class Stepper:
    """Takes steps; everything that changes by them belongs to `loop`, `generator` and the data."""

    def __init__(
        self,
        setup: Setup,
        *,
        denoiser: Denoiser,
        text: TextEmbeddings,
        loop: ResumableLoop,
        generator: Generator,
    ) -> None:
        """Take the parts of a run that is ready for its next step."""
        self._setup = setup
        self._denoiser = denoiser
        self._text = text
        self._loop = loop
        self._generator = generator
        self._meter = Meter(setup.device)

    def take(self) -> dict[str, float]:
        """Take one optimizer step and return its scalars by tag.

        Raises:
            RunError: If the loss or the gradients are not finite.
        """
        began = time.perf_counter()
        accumulate = self._setup.recipe.train.grad_accum
        losses: list[StepLoss] = []
        for _ in range(accumulate):
            loss = self._loss_of_next_batch()
            torch.autograd.backward(loss.total / accumulate)
            losses.append(loss)
        update: Update = self._loop.update()
        return self._meter.measure(losses, update, seconds=time.perf_counter() - began)

    def first_estimate(self, remaining: int) -> str | None:
        """Say how long the rest will take, once, when the first few steps are behind."""
        return self._meter.first_estimate(remaining)

    def _loss_of_next_batch(self) -> StepLoss:
        setup = self._setup
        batch = setup.data.next_batch()
        on_device = batch.to(setup.device)
        with setup.autocast():
            loss = flow_step_loss(
                self._denoiser,
                on_device.latents,
                mask=on_device.mask,
                seconds=on_device.seconds,
                text=[self._text(caption) for caption in batch.captions],
                objective=setup.recipe.objective,
                model_config=setup.source.config,
                generator=self._generator,
                silence=setup.data.train.silence,
                max_frames=setup.data.max_frames,
            )
        require_finite(loss, step=self._loop.step + 1, clip_ids=batch.clip_ids)
        return loss
