"""What an evaluation found, as plain values for JSON, the page and TensorBoard."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sa3lora.evaluation.frechet import Extrapolation
from sa3lora.evaluation.scores import Score

FORMAT_NAME = "sa3lora evaluation"
FORMAT_VERSION = 1
RESULT_NAME = "evaluation.json"
PAGE_NAME = "report.html"


@dataclass(frozen=True)
class AdapterUse:
    """An adapter that was evaluated, and how strongly it was applied."""

    path: str
    strength: float
    content_hash: str


@dataclass(frozen=True)
class ClipPair:
    """One prompt and seed with the audio of both systems, paths below the evaluation folder."""

    prompt: str
    seed: int
    base: str
    adapter: str
    base_clap: float
    adapter_clap: float


@dataclass(frozen=True)
class Settings:
    """How the clips were made; None means the model's own default."""

    num_clips: int
    duration_s: float
    seed: int
    num_inference_steps: int | None
    guidance_scale: float | None


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of base and adapter, and what they rest on.

    Attributes:
        model: The model both systems share.
        adapters: What the second system adds to it.
        settings: How the clips were made.
        scores: Each with its context.
        clips: The generated clips.
        extrapolations: FAD against sample size, by system; empty for fewer than 8 clips.
        notes: What a reader must know to read the scores rightly.
        folder: Where the report and the audio lie.
    """

    model: str
    adapters: tuple[AdapterUse, ...]
    settings: Settings
    scores: tuple[Score, ...]
    clips: tuple[ClipPair, ...]
    extrapolations: dict[str, Extrapolation]
    notes: tuple[str, ...]
    folder: Path

    @property
    def verdicts(self) -> list[str]:
        """One sentence a score on what its difference shows."""
        return [score.verdict for score in self.scores if score.difference is not None]

    def to_json(self) -> dict[str, Any]:
        """Give plain values; every score carries its context."""
        return {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "adapters": [asdict(adapter) for adapter in self.adapters],
            "settings": asdict(self.settings),
            "scores": [asdict(score) | {"verdict": score.verdict} for score in self.scores],
            "extrapolations": {name: asdict(line) for name, line in self.extrapolations.items()},
            "notes": list(self.notes),
            "clips": [asdict(clip) for clip in self.clips],
        }
