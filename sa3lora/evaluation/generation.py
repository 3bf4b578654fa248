"""The clips of an evaluation: which prompts with which seeds, made and kept as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sa3lora.audio import read_audio, write_audio
from sa3lora.errors import EvaluationError
from sa3lora.evaluation.embeddings import AudioPiece
from sa3lora.evaluation.result import Settings

if TYPE_CHECKING:
    from sa3lora.pipeline import SA3Pipeline

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ClipPlan:
    """One clip to make with each system."""

    prompt: str
    seed: int
    file_name: str


def plan_clips(prompts: Sequence[str], settings: Settings) -> list[ClipPlan]:
    """Choose prompt and seed of each clip.

    Of more prompts than clips an evenly spread part is taken; fewer are used again with other
    seeds. Seeds count up from the first.

    Args:
        prompts: Prompts in any order; equal ones count once.
        settings: Number of clips and first seed.

    Raises:
        EvaluationError: If there is no prompt.
    """
    different = list(dict.fromkeys(prompt for prompt in prompts if prompt.strip()))
    if not different:
        raise EvaluationError(
            "there are no prompts: neither the reference nor a dataset has captions. Give --prompts"
            " a file with one prompt a line, or the name of a packaged list: music, sfx or tiny."
        )
    count = settings.num_clips
    if len(different) > count:
        different = [different[number * len(different) // count] for number in range(count)]
    return [
        ClipPlan(different[n % len(different)], settings.seed + n, f"{n:03d}.wav")
        for n in range(count)
    ]


def generate_clips(
    pipeline: SA3Pipeline,
    plans: Sequence[ClipPlan],
    *,
    folder: Path,
    settings: Settings,
    progress: Progress | None = None,
) -> None:
    """Make every clip with the pipeline as it is now and write it into a folder.

    Clips are made one by one, so that each is what `generate` gives for its prompt and seed.
    """
    for number, plan in enumerate(plans):
        if progress is not None:
            progress(f"generate with {folder.name}", number, len(plans))
        output = pipeline(
            plan.prompt,
            duration_s=settings.duration_s,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            seed=plan.seed,
        )
        audio = output.audio[0].detach().cpu().float()
        write_audio(folder / plan.file_name, audio, output.sample_rate)
    if progress is not None:
        progress(f"generate with {folder.name}", len(plans), len(plans))


def read_clips(plans: Sequence[ClipPlan], folder: Path) -> Iterator[AudioPiece]:
    """Read the clips back, each a track of its own."""
    for plan in plans:
        audio, rate = read_audio(folder / plan.file_name)
        yield AudioPiece(plan.file_name, audio, rate)
