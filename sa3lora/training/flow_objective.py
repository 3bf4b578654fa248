"""The released objective as the trainer's source of losses, prior preservation included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from torch import Generator, Tensor

from sa3lora.latents.batching import Batch
from sa3lora.models.denoiser import Denoiser
from sa3lora.probe import StepLoss
from sa3lora.training.data import TextEmbeddings
from sa3lora.training.prior import draw_prompts, prior_loss, prior_prompts
from sa3lora.training.session import Setup
from sa3lora.training.step import MicroBatch, loss_of_micro_batch, prepare_step
from sa3lora.training.streams import StepStreams, Streams

Clips = tuple[Tensor, Tensor, Tensor]


class StepObjective(Protocol):
    """What an optimizer step minimises."""

    def losses(
        self, batches: Sequence[Batch], *, step: int, attempt: int = 0
    ) -> Iterator[StepLoss]:
        """Give the loss of each micro-batch of one step in turn.

        Every random number of the step is drawn before the first one, but for the adapter's
        dropout. The graph of a loss may be freed before the next is asked for.

        Args:
            batches: This process' share of the step.
            step: The optimizer step, counted from 1.
            attempt: How many times this step was given other clips before.
        """


class FlowObjective:
    """Rectified flow with everything that the recipe's `objective` section asks for."""

    def __init__(self, setup: Setup, *, denoiser: Denoiser, text: TextEmbeddings) -> None:
        """Take the parts of a run."""
        self._setup = setup
        self._denoiser = denoiser
        self._text = text
        self._streams = Streams(
            seed=setup.recipe.train.seed,
            rank=setup.processes.rank,
            world_size=setup.processes.size,
        )
        self._objective = setup.recipe.objective
        self._neutral = prior_prompts(self._objective)

    def losses(
        self, batches: Sequence[Batch], *, step: int, attempt: int = 0
    ) -> Iterator[StepLoss]:
        """Give the loss of each micro-batch of one step in turn."""
        streams = self._streams.of_step(step, attempt=attempt)
        own = [streams.generator(number) for number in range(len(batches))]
        ready = self._prepare(batches, own, streams)
        neutral = [
            self._draw_neutral(len(batch.captions), generator)
            for batch, generator in zip(batches, own, strict=True)
        ]
        for number, (clips, batch) in enumerate(zip(ready, batches, strict=True)):
            streams.seed_dropout(number)
            with self._setup.autocast():
                loss = self._loss(clips, batch.captions, neutral[number])
            yield loss

    def _prepare(
        self, batches: Sequence[Batch], own: Sequence[Generator], streams: StepStreams
    ) -> list[MicroBatch]:
        """Draw for this process' batches and couple them over the step of all processes."""
        setup = self._setup
        moved = [batch.to(setup.device) for batch in batches]
        parts = [(each.latents, each.mask, each.seconds) for each in moved]
        generators = list(own)
        together = setup.processes.size > 1 and self._objective.coupling != "none"
        if together:
            parts, generators = self._of_all_processes(parts, own, streams)
        ready = prepare_step(
            [latents for latents, _, _ in parts],
            masks=[mask for _, mask, _ in parts],
            seconds=[seconds for _, _, seconds in parts],
            objective=self._objective,
            model_config=setup.source.config,
            generators=generators,
        )  # silence is behind the clips already, as the batcher drew it
        rank, world = setup.processes.rank, setup.processes.size
        return ready[rank::world] if together else ready

    def _of_all_processes(
        self, parts: Sequence[Clips], own: Sequence[Generator], streams: StepStreams
    ) -> tuple[list[Clips], list[Generator]]:
        """Collect the batches of a step by their numbers: any clip may get any noise of it."""
        processes, device = self._setup.processes, self._setup.device
        gathered = processes.gather([[each.cpu() for each in part] for part in parts])
        everyone = [
            (latents.to(device), mask.to(device), seconds.to(device))
            for number in range(len(parts))
            for latents, mask, seconds in [share[number] for share in gathered]
        ]
        generators = [
            own[number] if rank == processes.rank else streams.generator(number, rank=rank)
            for number in range(len(parts))
            for rank in range(processes.size)
        ]
        return everyone, generators

    def _draw_neutral(self, count: int, generator: Generator) -> list[str]:
        if not self._neutral:
            return []
        return draw_prompts(self._neutral, count, generator=generator)

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
