"""The released objective as the trainer's source of losses, prior preservation included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from torch import Generator, Tensor

from sa3lora.latents.batching import Batch, BatchPlan
from sa3lora.models.denoiser import Denoiser
from sa3lora.probe import StepLoss
from sa3lora.training.data import TextEmbeddings
from sa3lora.training.prior import draw_prompts, prior_loss, prior_prompts
from sa3lora.training.session import Setup
from sa3lora.training.step import MicroBatch, loss_of_micro_batch, prepare_step
from sa3lora.training.streams import StepStreams, Streams


@dataclass(frozen=True)
class PreparedStep:
    """One optimizer step with everything read and drawn, on the host.

    Attributes:
        step: The optimizer step, counted from 1.
        attempt: How many times this step was given other clips before.
        clip_ids: The clips of each micro-batch of this process.
        losses: Gives the loss of each micro-batch in turn. The graph of one may be freed before
            the next is asked for. Nothing is drawn there but the adapter's dropout.
    """

    step: int
    attempt: int
    clip_ids: list[list[str]]
    losses: Callable[[], Iterator[StepLoss]]


class StepObjective(Protocol):
    """What an optimizer step minimises."""

    def prepare(
        self, rounds: Sequence[Sequence[BatchPlan]], *, step: int, attempt: int = 0
    ) -> PreparedStep:
        """Read the clips of a step and draw every random number, without the device.

        Args:
            rounds: For each micro-batch in turn what each process takes, by rank.
            step: The optimizer step, counted from 1.
            attempt: How many times this step was given other clips before.
        """


@dataclass(frozen=True)
class _Ready:
    """A micro-batch with the token embeddings of its prompts, and of neutral ones if any."""

    clips: MicroBatch
    text: list[Tensor]
    neutral: list[Tensor]


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

    def prepare(
        self, rounds: Sequence[Sequence[BatchPlan]], *, step: int, attempt: int = 0
    ) -> PreparedStep:
        """Read and draw for this process, coupled over the step of all processes."""
        setup, rank = self._setup, self._setup.processes.rank
        streams = self._streams.of_step(step, attempt=attempt)
        # Any clip may get any noise of the step: coupling needs the batches of all processes.
        together = self._objective.coupling != "none"
        ranks = range(setup.processes.size) if together else [rank]
        read = [[setup.data.read(plans[each]) for each in ranks] for plans in rounds]
        generators = [
            [streams.generator(number, rank=each) for each in ranks] for number in range(len(read))
        ]
        everyone = [batch for batches in read for batch in batches]
        drawn = prepare_step(
            [batch.latents for batch in everyone],
            masks=[batch.mask for batch in everyone],
            seconds=[batch.seconds for batch in everyone],
            objective=self._objective,
            model_config=setup.source.config,
            generators=[generator for row in generators for generator in row],
        )  # silence is behind the clips already, as the batcher drew it
        place = list(ranks).index(rank)
        own = [batches[place] for batches in read]
        ready = [
            self._ready(clips, batch, row[place])
            for clips, batch, row in zip(drawn[place :: len(ranks)], own, generators, strict=True)
        ]
        ids = [batch.clip_ids for batch in own]
        return PreparedStep(step, attempt, ids, partial(self._losses, ready, streams))

    def _ready(self, clips: MicroBatch, batch: Batch, generator: Generator) -> _Ready:
        neutral = self._draw_neutral(len(batch.captions), generator)
        return _Ready(
            clips.pinned(self._setup.device),
            text=[self._text(caption) for caption in batch.captions],
            neutral=[self._text(prompt) for prompt in neutral],
        )

    def _draw_neutral(self, count: int, generator: Generator) -> list[str]:
        if not self._neutral:
            return []
        return draw_prompts(self._neutral, count, generator=generator)

    def _losses(self, ready: Sequence[_Ready], streams: StepStreams) -> Iterator[StepLoss]:
        for number, batch in enumerate(ready):
            streams.seed_dropout(number)
            with self._setup.autocast():
                loss = self._loss(batch)
            yield loss

    def _loss(self, batch: _Ready) -> StepLoss:
        packed = self._setup.data.packed
        clips = batch.clips.sent(self._setup.device)
        loss = loss_of_micro_batch(
            self._denoiser, clips, text=batch.text, objective=self._objective, packed=packed
        )
        if not batch.neutral:
            return loss
        prior = prior_loss(self._denoiser, clips, text=batch.neutral, packed=packed)
        total = loss.total + self._objective.prior_weight * prior
        return replace(loss, total=total, prior=prior.detach())
