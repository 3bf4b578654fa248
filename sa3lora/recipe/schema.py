"""The keys of a recipe, their types, limits and defaults.

The schema is closed. Defaults are the values that the released models were trained with.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, Field, field_validator, model_validator

from sa3lora.recipe.adapter_section import AdapterSection
from sa3lora.recipe.distill_section import DistillSection
from sa3lora.recipe.optim_section import OptimSection
from sa3lora.recipe.section import (
    Count,
    Positive,
    Section,
    Share,
    Steps,
    Weight,
    auto_or_bool,
    no_bool,
)


class DataSection(Section):
    """Where the clips come from, and how many frames make a batch."""

    root: Path | None = None
    split: Literal["train", "validation", "test"] = "train"
    max_duration_s: Positive | None = None
    frames_per_batch: Count = 4096
    packing: Literal["auto"] | bool = "auto"

    _packing = field_validator("packing", mode="before")(auto_or_bool)


class ObjectiveSection(Section):
    """The loss and the laws of everything that it draws."""

    timesteps: Literal[
        "trunc_logit_normal", "logit_normal", "uniform", "log_snr", "log_snr_uniform"
    ] = "trunc_logit_normal"
    shift: Literal["model", "none", "full", "flux", "logsnr"] = "model"
    coupling: Literal["sinkhorn", "exact", "none"] = "sinkhorn"
    inpaint: list[Share] = [0.1, 0.8, 0.1]
    silence_s: Weight = 4.0
    prompt_dropout: Share = 0.1
    context_weight: Weight = 1.0
    normalisation: Literal["none", "timestep", "sample", "sample_channel"] = "none"
    min_snr_gamma: Positive | None = None
    prior_weight: Weight = 0.0
    prior_prompts: Annotated[list[str], Field(min_length=1)] | None = None

    @field_validator("inpaint")
    @classmethod
    def _probabilities(cls, value: list[float]) -> list[float]:
        if len(value) not in (3, 4):
            raise ValueError(
                "must be 3 or 4 probabilities (segments, full, causal and, if given, spans), "
                f"got {len(value)}"
            )
        if not math.isclose(sum(value), 1.0, abs_tol=1e-6):
            raise ValueError(f"must sum to 1, got {sum(value):g}")
        return value


class TrainSection(Section):
    """How long, from which seed and in which precision."""

    max_steps: Count = 1000
    seed: Annotated[int, Field(ge=0, lt=1 << 63), BeforeValidator(no_bool)] = 42
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    base_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "nf4"] = "auto"
    grad_accum: Count = 1
    checkpointing: Literal["auto", "fast", "lean"] | bool | float = "auto"
    compile: bool = False
    offload: bool = False

    @field_validator("checkpointing", mode="before")
    @classmethod
    def _mode_or_share(cls, value: object) -> object:
        if isinstance(value, bool) or value in ("auto", "fast", "lean"):
            return value
        if isinstance(value, int | float) and 0 <= value <= 1:
            return float(value)
        raise ValueError(
            "must be auto, fast, lean, true, false or the share of blocks that is recomputed, "
            f"0 to 1, got {value!r}"
        )


class ValidationSection(Section):
    """The paired loss of base and adapter on fixed tuples."""

    every: Steps = 100
    tuples: Count = 64
    select: Literal["best", "last"] = "best"
    patience: Count | None = None
    drift: bool = True

    @model_validator(mode="after")
    def _patience_needs_validation(self) -> ValidationSection:
        if self.patience is not None and self.every == 0:
            raise ValueError("patience counts validations, but every is 0: set it to some steps")
        return self


class PreviewSection(Section):
    """Audio of base and adapter side by side during the run."""

    every: Steps = 500
    prompts: list[str] = []
    duration_s: Positive | None = None
    steps: Count | None = None
    few_step_model: str | None = None


class CheckpointSection(Section):
    """How often the run can be resumed from, and how many of those stay."""

    every: Count = 200
    keep: Count = 3


class Recipe(Section):
    """One training run, fully described.

    `validate` in a recipe is the attribute `validation` here, and `adapter.from` is
    `adapter.from_`: Python and pydantic have taken those names.
    """

    model: str | None = None
    data: DataSection = DataSection()
    adapter: AdapterSection = AdapterSection()
    objective: ObjectiveSection = ObjectiveSection()
    distill: DistillSection = DistillSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    validation: ValidationSection = Field(default=ValidationSection(), alias="validate")
    preview: PreviewSection = PreviewSection()
    checkpoint: CheckpointSection = CheckpointSection()

    def to_yaml(self) -> str:
        """Write every key with its value, defaults included.

        Returns:
            YAML that `load_recipe` reads back to an equal recipe.
        """
        values = self.model_dump(mode="json", by_alias=True)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
