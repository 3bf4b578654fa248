"""Few-step adapters: one step of the ping-pong sampler learns to arrive where the teacher does.

For a clip and a seed let t be one of the noise levels t_i at which a ping-pong sampler of
`student_steps` steps calls the model, n Gaussian noise and

    x_t = (1 - t) clip + t n                      (at the first level, t = 1, noise alone)
    y   = the teacher's solution from x_t at time t to time 0: `teacher_steps` steps of
          DPM-Solver++(2M) along the velocity of the adapted base, guidance `teacher_guidance`.

A ping-pong step jumps from t to 0 in one go, to x_t - t v(x_t, t, prompt), before it adds fresh
noise. The student v is the few-step model with the adapter under training, without guidance, and

    L = mean over clips of  || x_t - t v(x_t, t, prompt) - y ||^2 / (channels x real frames).

This is the second stage of the released models, a mean squared error to a 15-step DPM++ teacher
of guidance 5, applied to an adapter alone. Nothing is given to the model (no inpainting), no
prompt is dropped, and of the `objective` section only `silence_s` counts. Validation takes the
same distance of fixed pairs, held-out and trained on, with the adapter and without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sa3lora.flow import flow_loss, frame_mask
from sa3lora.latents.batching import BatchPlan
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.upload import upload
from sa3lora.probe import StepLoss
from sa3lora.training.data import TextEmbeddings
from sa3lora.training.flow_objective import FlowObjective, PreparedStep, StepObjective
from sa3lora.training.session import Setup
from sa3lora.training.streams import StepStreams, Streams
from sa3lora.training.teacher import PairFolder, TeacherPair


class Distillation:
    """The teacher's latents as the trainer's source of losses."""

    def __init__(
        self,
        setup: Setup,
        *,
        denoiser: Denoiser,
        text: TextEmbeddings,
        folder: Path,
    ) -> None:
        """Take the parts of a run."""
        self._setup = setup
        self._denoiser = denoiser
        self._text = text
        self._streams = Streams(
            seed=setup.recipe.train.seed,
            rank=setup.processes.rank,
            world_size=setup.processes.size,
        )
        self._pairs = PairFolder(folder)

    def prepare(
        self, rounds: Sequence[Sequence[BatchPlan]], *, step: int, attempt: int = 0
    ) -> PreparedStep:
        """Draw which pairs are shown, and read them."""
        streams = self._streams.of_step(step, attempt=attempt)
        rank, seeds = self._setup.processes.rank, self._setup.recipe.distill.seeds
        rows = self._setup.data.train.rows
        ready, ids = [], []
        for place, plans in enumerate(rounds):
            clips = [crop.index for crop in plans[rank].crops]
            generator = streams.generator(place)
            numbers = torch.randint(seeds, (len(clips),), generator=generator).tolist()
            pairs = [
                self._pairs.read(rows[n], seed) for n, seed in zip(clips, numbers, strict=True)
            ]
            ready.append((pairs, [self._text(rows[n].caption) for n in clips]))
            ids.append([rows[n].clip_id for n in clips])
        return PreparedStep(step, attempt, ids, partial(self._losses, ready, streams))

    def _losses(
        self, ready: Sequence[tuple[list[TeacherPair], list[Tensor]]], streams: StepStreams
    ) -> Iterator[StepLoss]:
        for place, (pairs, text) in enumerate(ready):
            streams.seed_dropout(place)
            with self._setup.autocast():
                loss = distillation_loss(
                    self._denoiser, pairs, text=text, packed=self._setup.data.packed
                )
            yield loss


def distillation_loss(
    denoiser: Denoiser,
    pairs: Sequence[TeacherPair],
    *,
    text: Sequence[Tensor],
    packed: bool = False,
) -> StepLoss:
    """Compare the student's one-step latents with the teacher's; see the module for the formula.

    Args:
        denoiser: Few-step model with the adapter under training.
        pairs: What the teacher made.
        text: Token embeddings of the prompt of each, (L_i, D).
        packed: Compute nothing for padding.
    """
    device = denoiser.device
    start, target = (
        upload(pad_sequence([x.T for x in each], batch_first=True).transpose(1, 2), device)
        for each in ([pair.start for pair in pairs], [pair.target for pair in pairs])
    )
    lengths = torch.tensor([pair.start.shape[1] for pair in pairs])
    mask = frame_mask(lengths, start.shape[2])
    t = upload(torch.tensor([pair.t for pair in pairs]), device)
    seconds = torch.tensor([pair.seconds for pair in pairs])
    velocity = denoiser.velocity(
        start, t, denoiser.condition(list(text), seconds), mask=mask, packed=packed
    )
    arrived = start - t[:, None, None] * velocity.float()
    real = upload(mask, device)
    loss = flow_loss(arrived, target, real, torch.zeros_like(real), context_weight=0.0)
    num_frames = int(lengths.sum())
    return StepLoss(
        total=loss.total,
        signal=loss.signal.detach(),
        context=loss.context.detach(),
        per_item=loss.per_item.detach(),
        t=t,
        num_frames=num_frames,
        num_slots=num_frames if packed else mask.numel(),
    )


def make_objective(
    setup: Setup,
    *,
    denoiser: Denoiser,
    text: TextEmbeddings,
    teacher_folder: Path,
) -> StepObjective:
    """Choose what a run minimises: the released objective, or the distance from its teacher."""
    if setup.recipe.distill.teacher is None:
        return FlowObjective(setup, denoiser=denoiser, text=text)
    return Distillation(setup, denoiser=denoiser, text=text, folder=teacher_folder)
