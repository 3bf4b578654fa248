"""How far one step of the student lands from the teacher, on pairs that stay the same all run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sa3lora.models.denoiser import Denoiser
from sa3lora.probe import like_lengths
from sa3lora.training.distillation import distillation_loss
from sa3lora.training.session import Setup
from sa3lora.training.teacher import PairFolder, TeacherPair, Wanted, validation_pairs
from sa3lora.training.validation import Probe


class TeacherProbe:
    """Pairs of the teacher as fixed tuples of clip, noise and noise level."""

    def __init__(
        self, wanted: Sequence[Wanted], pairs: PairFolder, *, frames_per_batch: int
    ) -> None:
        """Take the pairs, which are on disk already."""
        self._wanted = list(wanted)
        self._pairs = pairs
        self._frames_per_batch = frames_per_batch

    @property
    def tracks(self) -> list[str]:
        """The track of each pair."""
        return [each.clip.source for each in self._wanted]

    @torch.no_grad()
    def losses(self, denoiser: Denoiser, text: Callable[[str], Tensor]) -> Tensor:
        """Return the distance of each pair, (n,), float32, on the CPU."""
        pairs = [self._read(each) for each in self._wanted]
        losses = torch.zeros(len(pairs))
        lengths = [pair.start.shape[1] for pair in pairs]
        for batch in like_lengths(lengths, self._frames_per_batch):
            captions = [self._wanted[n].clip.caption for n in batch]
            loss = distillation_loss(
                denoiser, [pairs[n] for n in batch], text=[text(caption) for caption in captions]
            )
            losses[batch] = loss.per_item.cpu()
        return losses

    def _read(self, wanted: Wanted) -> TeacherPair:
        return self._pairs.read(wanted.clip, wanted.number)


def teacher_probes(setup: Setup, folder: Path) -> Mapping[str, Probe] | None:
    """Give by kind of clips what a run with a teacher is validated on, None for any other run."""
    recipe = setup.recipe
    if recipe.distill.teacher is None:
        return None
    return {
        kind: TeacherProbe(
            wanted, PairFolder(folder), frames_per_batch=recipe.data.frames_per_batch
        )
        for kind, wanted in validation_pairs(recipe, setup.data).items()
    }
