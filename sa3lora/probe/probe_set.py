"""A fixed set of (clip, t, noise, keep) tuples and the losses of a model on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sa3lora.errors import DatasetError
from sa3lora.flow import frame_mask, sample_keep_mask
from sa3lora.latents.format import LatentsDataset
from sa3lora.models.config import ModelConfig
from sa3lora.models.denoiser import Denoiser
from sa3lora.probe.draws import Draws, draw_timesteps, loss_of_draws
from sa3lora.recipe import ObjectiveSection

_MAX_BATCH = 16


@dataclass(frozen=True)
class ProbeItem:
    """One tuple: what is fixed of it, and the seed of what is drawn again every time.

    Attributes:
        index: Number of the clip in the dataset of the probe.
        track: Source file of the clip, the unit of every interval.
        caption: Its prompt.
        num_frames: Frames of it that are used.
        seconds: Duration that the model is told.
        t: Noise level, after the shift.
        seed: Seed of noise and keep-mask.
    """

    index: int
    track: str
    caption: str
    num_frames: int
    seconds: float
    t: float
    seed: int


class ProbeSet:
    """Tuples on which two models are compared.

    Noise is drawn again from its seed each time instead of being stored; it is the same on every
    device and whatever else lies in the batch.
    """

    def __init__(
        self,
        dataset: LatentsDataset,
        items: Sequence[ProbeItem],
        *,
        objective: ObjectiveSection,
        frames_per_batch: int,
    ) -> None:
        """Take the tuples as they are; `build` makes them."""
        self.dataset = dataset
        self.items = list(items)
        self._objective = objective
        self._frames_per_batch = frames_per_batch

    @classmethod
    def build(
        cls,
        dataset: LatentsDataset,
        num_tuples: int,
        *,
        seed: int,
        objective: ObjectiveSection,
        model_config: ModelConfig,
        max_frames: int | None = None,
        frames_per_batch: int = 4096,
    ) -> ProbeSet:
        """Choose tuples that go round the tracks, so that no long track dominates.

        Args:
            dataset: The split to probe.
            num_tuples: How many tuples.
            seed: The same seed and dataset give the same tuples.
            objective: The recipe's objective, for the laws of time and keep-mask.
            model_config: The model's configuration, for the shift.
            max_frames: Longer clips are cut to their beginning.
            frames_per_batch: Frames, padding included, of one evaluation batch.

        Raises:
            DatasetError: If the split has no clip.
        """
        if len(dataset) == 0:
            raise DatasetError(
                f"{dataset.root} has no clip in its {dataset.split or 'whole'} split to probe."
            )
        generator = Generator().manual_seed(seed)
        chosen = round_robin([row.source for row in dataset.rows], num_tuples, generator)
        ratio = model_config.downsampling_ratio
        frames = [_limit(dataset.rows[index].num_frames, max_frames) for index in chosen]
        seconds = [
            min(dataset.rows[index].duration_s, count * ratio / model_config.sample_rate)
            for index, count in zip(chosen, frames, strict=True)
        ]
        t = draw_timesteps(
            torch.tensor(seconds, dtype=torch.float32),
            objective=objective,
            model_config=model_config,
            generator=generator,
        )
        seeds = torch.randint(2**31, (num_tuples,), generator=generator)
        items = [
            ProbeItem(
                index=index,
                track=dataset.rows[index].source,
                caption=dataset.rows[index].caption,
                num_frames=frames[n],
                seconds=seconds[n],
                t=float(t[n]),
                seed=int(seeds[n]),
            )
            for n, index in enumerate(chosen)
        ]
        return cls(dataset, items, objective=objective, frames_per_batch=frames_per_batch)

    @property
    def tracks(self) -> list[str]:
        """The track of each tuple."""
        return [item.track for item in self.items]

    @torch.no_grad()
    def losses(self, denoiser: Denoiser, text: Callable[[str], Tensor]) -> Tensor:
        """Return the model's loss on each tuple, on the frames it has to generate.

        Args:
            denoiser: The model as it is, with or without adapters.
            text: Token embeddings (L, D) of a caption.

        Returns:
            One loss a tuple, (n,), float32, on the CPU.
        """
        losses = torch.zeros(len(self.items))
        lengths = [item.num_frames for item in self.items]
        for batch in like_lengths(lengths, self._frames_per_batch):
            items = [self.items[n] for n in batch]
            latents, mask, draws = self._draw(items, denoiser.device)
            loss = loss_of_draws(
                denoiser,
                latents,
                mask=mask,
                seconds=torch.tensor([item.seconds for item in items], dtype=torch.float32),
                text=[text(item.caption) for item in items],
                draws=draws,
                context_weight=0.0,
                normalisation="none",
            )
            losses[batch] = loss.per_item.cpu()
        return losses

    def _draw(
        self, items: Sequence[ProbeItem], device: torch.device
    ) -> tuple[Tensor, Tensor, Draws]:
        longest = max(item.num_frames for item in items)
        shape = (len(items), self.dataset.meta.channels, longest)
        latents, noise = torch.zeros(shape), torch.zeros(shape)
        keep = torch.zeros(len(items), longest, dtype=torch.bool)
        for row, item in enumerate(items):
            count = item.num_frames
            generator = Generator().manual_seed(item.seed)
            latents[row, :, :count] = self.dataset[item.index].latent[:, :count]
            noise[row, :, :count] = torch.randn(shape[1], count, generator=generator)
            keep[row, :count] = self._keep_mask(count, generator)
        draws = Draws(
            t=torch.tensor([item.t for item in items]).to(device),
            noise=noise.to(device),
            keep=keep.to(device),
            dropped=torch.zeros(len(items), dtype=torch.bool),
        )
        lengths = torch.tensor([item.num_frames for item in items])
        return latents.to(device), frame_mask(lengths, longest), draws

    def _keep_mask(self, num_frames: int, generator: Generator) -> Tensor:
        keep = sample_keep_mask(
            torch.tensor([num_frames]),
            num_frames,
            probabilities=self._objective.inpaint,
            generator=generator,
        )[0]
        # A clip that is given whole has nothing to be scored on.
        return torch.zeros_like(keep) if bool(keep.all()) else keep


def like_lengths(lengths: Sequence[int], frames_per_batch: int) -> list[list[int]]:
    """Put tuples of like lengths together, and no more frames than a batch may have."""
    batches: list[list[int]] = []
    for n in sorted(range(len(lengths)), key=lambda n: (lengths[n], n)):
        # The order is ascending, so this clip is the longest of its batch.
        full = batches and len(batches[-1]) >= _MAX_BATCH
        if not batches or full or (len(batches[-1]) + 1) * lengths[n] > frames_per_batch:
            batches.append([])
        batches[-1].append(n)
    return batches


def _limit(num_frames: int, max_frames: int | None) -> int:
    return num_frames if max_frames is None else min(num_frames, max_frames)


def round_robin(tracks: Sequence[str], count: int, generator: Generator) -> list[int]:
    """Choose clips track by track, in an order drawn once for tracks and for clips of each."""
    names = sorted(set(tracks))
    names = [names[n] for n in torch.randperm(len(names), generator=generator).tolist()]
    clips: dict[str, list[int]] = {name: [] for name in names}
    for n in torch.randperm(len(tracks), generator=generator).tolist():
        clips[tracks[n]].append(n)
    chosen = []
    for n in range(count):
        of_track = clips[names[n % len(names)]]
        chosen.append(of_track[(n // len(names)) % len(of_track)])
    return chosen
