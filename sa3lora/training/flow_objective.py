"""The released objective as the trainer's source of losses, prior preservation included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from torch import Generator

from sa3lora.latents.batching import Batch
from sa3lora.models.denoiser import Denoiser
from sa3lora.probe import StepLoss
from sa3lora.training.data import TextEmbeddings
from sa3lora.training.prior import draw_prompts, prior_loss, prior_prompts
from sa3lora.training.session import Setup
from sa3lora.training.step import MicroBatch, loss_of_micro_batch, prepare_step


class StepObjective(Protocol):
    """What an optimizer step minimises."""

    def losses(self, batches: Sequence[Batch]) -> Iterator[StepLoss]:
        """Give the loss of each micro-batch of one step in turn.

        Every random number of the step is drawn before the first one. The graph of a loss may be
        freed before the next is asked for.
        """


class FlowObjective:
    """Rectified flow with everything that the recipe's `objective` section asks for."""

    def __init__(
        self, setup: Setup, *, denoiser: Denoiser, text: TextEmbeddings, generator: Generator
    ) -> None:
        """Take the parts of a run; every number is drawn from `generator`."""
        self._setup = setup
        self._denoiser = denoiser
        self._text = text
        self._generator = generator
        self._objective = setup.recipe.objective
        self._neutral = prior_prompts(self._objective)

    def losses(self, batches: Sequence[Batch]) -> Iterator[StepLoss]:
        """Give the loss of each micro-batch of one step in turn."""
        setup = self._setup
        moved = [batch.to(setup.device) for batch in batches]
        ready = prepare_step(
            [each.latents for each in moved],
            masks=[each.mask for each in moved],
            seconds=[each.seconds for each in moved],
            objective=self._objective,
            model_config=setup.source.config,
            generator=self._generator,
        )  # silence is behind the clips already, as the batcher drew it
        neutral = [self._draw_neutral(len(batch.captions)) for batch in batches]
        for clips, batch, prompts in zip(ready, batches, neutral, strict=True):
            with setup.autocast():
                loss = self._loss(clips, batch.captions, prompts)
            yield loss

    def _draw_neutral(self, count: int) -> list[str]:
        if not self._neutral:
            return []
        return draw_prompts(self._neutral, count, generator=self._generator)

    def _loss(self, clips: MicroBatch, captions: list[str], neutral: list[str]) -> StepLoss:
        packed = self._setup.data.packed
        loss = loss_of_micro_batch(
            self._denoiser,
            clips,
            text=[self._text(caption) for caption in captions],
            objective=self._objective,
            packed=packed,
        )
        if not neutral:
            return loss
        neutral_text = [self._text(prompt) for prompt in neutral]
        prior = prior_loss(self._denoiser, clips, text=neutral_text, packed=packed)
        total = loss.total + self._objective.prior_weight * prior
        return replace(loss, total=total, prior=prior.detach())
