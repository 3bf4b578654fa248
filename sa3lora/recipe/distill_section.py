"""The `distill` section: fit an adapter to a few-step model by what an adapted base makes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sa3lora.recipe.section import Count, Positive, Section


class DistillSection(Section):
    """The teacher of a few-step adapter; without `teacher` a run trains on its clips as always."""

    teacher: Path | None = None
    base: str | None = None
    teacher_steps: Count = 15
    teacher_guidance: Positive = 5.0
    sampler: Literal["dpmpp", "euler", "rk4"] = "dpmpp"
    student_steps: Count = 8
    seeds: Count = 4
