"""What the teacher of a few-step adapter makes, computed once and kept in the run's folder.

The teacher is the base model with the adapter that was trained on it. It is in memory only here:
by the time the student loads, its latents are all on disk.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Generator, Tensor

from sa3lora.adapters.find import find_adapter
from sa3lora.flow import SAMPLING_DEFAULT, effective_length, interpolate, sample, shift
from sa3lora.latents.collate import Crop, crop_seconds
from sa3lora.latents.format import LatentsDataset
from sa3lora.latents.schema import ClipRow
from sa3lora.models.config import ModelConfig
from sa3lora.models.denoiser import Denoiser
from sa3lora.pipeline import Guidance, GuidedVelocity, SA3Pipeline
from sa3lora.probe import round_robin
from sa3lora.recipe import DistillSection, Recipe
from sa3lora.runs import write_bytes_atomic
from sa3lora.training.data import TextEmbeddings, TrainingData
from sa3lora.training.session import Setup
from sa3lora.training.step import extend_by_silence
from sa3lora.training.teacher_source import teacher_source
from sa3lora.training.validation import SEEDS, VALIDATION, validated_splits

Tell = Callable[[str], None]

TEACHER_FOLDER = "teacher"  # in the run's folder


@dataclass(frozen=True)
class TeacherPair:
    """Where the teacher started from and where it arrived, for one clip and seed.

    Attributes:
        start: Noisy latents at the noise level `t`, (C, T), exactly as the teacher saw them.
        target: The teacher's latents at time 0, (C, T).
        t: Noise level of `start`.
        seconds: Duration that both models are told.
    """

    start: Tensor
    target: Tensor
    t: float
    seconds: float


class PairFolder:
    """Pairs on disk, one file for each clip with its caption and number, float16."""

    def __init__(self, folder: Path) -> None:
        """Point at a folder; it may be missing."""
        self._folder = folder

    def read(self, clip: ClipRow, number: int) -> TeacherPair:
        """Read one pair; latents come back in float32 with the stored values."""
        tensors = load_file(self._path(clip, number))
        return TeacherPair(
            start=tensors["start"].float(),
            target=tensors["target"].float(),
            t=float(tensors["t"]),
            seconds=float(tensors["seconds"]),
        )

    def write(self, clip: ClipRow, number: int, pair: TeacherPair) -> None:
        """Write one pair whole."""
        tensors = {
            "start": pair.start.half().contiguous(),
            "target": pair.target.cpu().half().contiguous(),
            "t": torch.tensor(pair.t, dtype=torch.float32),
            "seconds": torch.tensor(pair.seconds, dtype=torch.float32),
        }
        write_bytes_atomic(self._path(clip, number), save(tensors))

    def has(self, clip: ClipRow, number: int) -> bool:
        """Tell whether a pair is there and can be read."""
        try:
            self.read(clip, number)
        except (OSError, SafetensorError, KeyError):
            return False
        return True

    def _path(self, clip: ClipRow, number: int) -> Path:
        # A dataset that changed has clips at other places, and other captions of the same clips.
        name = hashlib.sha256(f"{clip.clip_id}\0{clip.caption}".encode()).hexdigest()[:16]
        return self._folder / f"{name}-{number:03d}.safetensors"


@dataclass(frozen=True)
class Wanted:
    """One pair that a run needs: the clip in its split, its number and the seed of its draws."""

    clips: LatentsDataset
    index: int
    number: int
    seed: int

    @property
    def clip(self) -> ClipRow:
        """What the dataset says of the clip, as pairs are stored by."""
        return self.clips.rows[self.index]


def training_pairs(recipe: Recipe, data: TrainingData) -> list[Wanted]:
    """List what a run is trained on."""
    return [
        Wanted(data.train, index, number, recipe.train.seed)
        for index in range(len(data.train))
        for number in range(recipe.distill.seeds)
    ]


def validation_pairs(recipe: Recipe, data: TrainingData) -> dict[str, list[Wanted]]:
    """List by kind of clips what a run is validated on; every track counts alike.

    Of training clips these are pairs that the run trains on, which cost no more of the teacher's
    time. Those of held-out clips are the same in runs of other seeds.
    """
    found: dict[str, list[Wanted]] = {}
    if not recipe.validation.every:
        return found
    for kind, clips in validated_splits(data).items():
        seed = SEEDS[kind] if kind == VALIDATION else recipe.train.seed
        times: Counter[int] = Counter()
        found[kind] = []
        tracks = [row.source for row in clips.rows]
        order = Generator().manual_seed(SEEDS[kind])
        for index in round_robin(tracks, recipe.validation.tuples, order):
            number, times[index] = times[index], times[index] + 1
            if kind == VALIDATION or number < recipe.distill.seeds:
                found[kind].append(Wanted(clips, index, number, seed))
    return found


def make_pairs(setup: Setup, text: TextEmbeddings, folder: Path, *, tell: Tell) -> None:
    """Let the teacher make what is not in the folder yet, and let go of it.

    Processes share the work. Every pair follows from its seed, the clip and the number of the
    pair, so an interrupted run makes only what is missing and ends with the same files.
    """
    recipe, data, pairs = setup.recipe, setup.data, PairFolder(folder)
    assert recipe.distill.teacher is not None
    held_out = validation_pairs(recipe, data).get(VALIDATION, [])
    wanted = training_pairs(recipe, data) + held_out
    mine = wanted[setup.processes.rank :: setup.processes.size]
    missing = [each for each in mine if not pairs.has(each.clip, each.number)]
    if missing:
        on_cuda = setup.device.type == "cuda"
        pipeline = SA3Pipeline(
            teacher_source(recipe.distill, setup.source),
            device=str(setup.device),
            dtype=torch.float16 if on_cuda else torch.float32,
        )
        pipeline.load_adapter(find_adapter(recipe.distill.teacher))
        tell(
            f"the teacher makes {len(missing)} of {len(wanted)} latents, "
            f"{len(held_out)} of them to validate on"
        )
        for each in missing:
            pair = make_pair(
                pipeline.denoiser,
                draw_start(recipe, data, setup.source.config, wanted=each),
                text=text(each.clip.caption),
                section=recipe.distill,
                config=setup.source.config,
            )
            pairs.write(each.clip, each.number, pair)
    setup.processes.wait()


@dataclass(frozen=True)
class Start:
    """Noisy latents (C, T) at the level u of the even grid, and the duration they are told with."""

    latents: Tensor
    u: float
    seconds: float


def draw_start(recipe: Recipe, data: TrainingData, config: ModelConfig, *, wanted: Wanted) -> Start:
    """Draw level, crop, silence and noise of one pair, from its seed, clip and number alone."""
    clip = wanted.clips[wanted.index]
    generator = Generator().manual_seed(_pair_seed(wanted.seed, clip.clip_id, wanted.number))
    steps = recipe.distill.student_steps
    u = 1.0 - _integer(steps, generator) / steps
    length = min(clip.num_frames, data.max_frames)
    crop = Crop(wanted.index, _integer(clip.num_frames - length + 1, generator), length)
    latents = clip.latent[:, crop.start : crop.start + length].float()
    extended, mask = extend_by_silence(
        latents[None],
        torch.ones(1, length, dtype=torch.bool),
        silence=wanted.clips.silence,
        mean_s=recipe.objective.silence_s,
        model_config=config,
        generator=generator,
        max_frames=data.max_frames,
    )
    whole = extended[:, :, : int(mask.sum())]
    noise = torch.randn(whole.shape, generator=generator)
    seconds = crop_seconds(clip, crop, frame_s=data.frame_s)
    t = float(_times([u], seconds, config)[0])
    return Start(interpolate(whole, noise, t)[0].half().float(), u, seconds)


@torch.no_grad()
def make_pair(
    denoiser: Denoiser, start: Start, *, text: Tensor, section: DistillSection, config: ModelConfig
) -> TeacherPair:
    """Follow the teacher's guided velocity from a start to time 0."""
    device = denoiser.device
    grid = torch.linspace(start.u, 0, section.teacher_steps + 1).tolist()
    schedule = _times(grid, start.seconds, config).to(device)
    x = start.latents[None].to(device)
    velocity = GuidedVelocity(
        denoiser,
        denoiser.condition([text], torch.tensor([start.seconds], device=device)),
        None,
        Guidance(scale=section.teacher_guidance),
        torch.ones(1, x.shape[2], dtype=torch.bool, device=device),
    )
    target = sample(velocity, x, schedule=schedule, sampler=section.sampler)[0]
    return TeacherPair(start.latents, target.float().cpu(), float(schedule[0]), start.seconds)


def _times(grid: Sequence[float], seconds: float, config: ModelConfig) -> Tensor:
    """Warp points of the even grid as a sampler does for a clip of that duration."""
    length = effective_length(
        torch.tensor([seconds]), sample_rate=config.sample_rate, ratio=config.downsampling_ratio
    )
    options = config.sampling_shift or SAMPLING_DEFAULT
    return shift(torch.tensor(grid), length.clamp(min=1), options=options)


def _pair_seed(seed: int, clip_id: str, number: int) -> int:
    digest = hashlib.sha256(f"teacher {seed} {clip_id} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _integer(below: int, generator: Generator) -> int:
    return int(torch.randint(below, (1,), generator=generator).item())
