"""The keys of a recipe, their types, limits and defaults.

The schema is closed. Defaults are the values that the released models were trained with.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


def _no_bool(value: object) -> object:
    # yes, on and true are numbers to pydantic, and a rank of True would be 1
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {value!r}")
    return value


Share = Annotated[float, Field(ge=0.0, le=1.0), BeforeValidator(_no_bool)]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False), BeforeValidator(_no_bool)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False), BeforeValidator(_no_bool)]
Count = Annotated[int, Field(ge=1), BeforeValidator(_no_bool)]
Steps = Annotated[int, Field(ge=0), BeforeValidator(_no_bool)]

# Substrings of site names, in the sense of `adapter.include`.
_TARGETS: dict[str, list[str] | None] = {
    "all": None,
    "attention": [".self_attn.", ".cross_attn."],
    "self_attention": [".self_attn."],
    "cross_attention": [".cross_attn."],
    "feed_forward": [".ff."],
    "mlp": [".ff."],
    "transformer": [".transformer."],
    "all-linear": None,
    "official": None,  # what the released trainer adapts when nothing is said
}
_CONVOLUTIONS = ["preprocess_conv", "postprocess_conv"]


# Official patterns need the dots, or they match nothing, or layers 10 to 19 beside layer 1.
_LAYERS = re.compile(r"layers\[(\d+(?:-\d+)?)\]\.?")


def _official_pattern(text: str) -> str:
    """Turn `layers[0-11]` into `layers.[0-11].`, and `layers[3]` into `layers.3.`."""

    def dotted(match: re.Match[str]) -> str:
        numbers = match[1]
        return f"layers.[{numbers}]." if "-" in numbers else f"layers.{numbers}."

    return _LAYERS.sub(dotted, text)


def _new_name(value: object) -> object:
    return "dora-rows" if value == "dora" else value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class DataSection(_Section):
    """Where the clips come from, and how many frames make a batch."""

    root: Path | None = None
    split: Literal["train", "validation", "test"] = "train"
    max_duration_s: Positive | None = None
    frames_per_batch: Count = 4096


class AdapterSection(_Section):
    """What is added to the base model."""

    type: Annotated[
        Literal[
            "lora", "dora-rows", "dora-cols", "bora",
            "lora-xs", "dora-rows-xs", "dora-cols-xs", "bora-xs", "rslora",
        ],
        BeforeValidator(_new_name),
    ] = "lora"  # fmt: skip
    r: Count = 16
    lora_alpha: Positive | None = None
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    targets: Literal[
        "all", "attention", "self_attention", "cross_attention", "feed_forward", "mlp",
        "transformer", "all-linear", "official",
    ] = "all"  # fmt: skip
    include: list[str] | None = None
    exclude: list[str] = []
    init: Literal["default", "pissa"] = "default"
    from_: Path | None = Field(default=None, alias="from")

    @model_validator(mode="after")
    def _targets_or_include(self) -> AdapterSection:
        if self.include is not None and self.targets != "all":
            raise ValueError("give targets or include, not both: targets is short for include")
        return self

    @model_validator(mode="after")
    def _init_fits(self) -> AdapterSection:
        if self.init == "pissa" and self.type not in ("lora", "rslora"):
            raise ValueError(f"init pissa belongs to type lora or rslora, got {self.type}")
        if self.init == "pissa" and self.from_ is not None:
            raise ValueError(
                "give init or from, not both: from already says what training starts from"
            )
        return self

    @property
    def alpha(self) -> float:
        """Weight of the low-rank product times `r`: `lora_alpha`, which is `r` unless given.

        `rslora` divides by the square root of `r` instead, so there it is that much larger.
        """
        alpha = float(self.r if self.lora_alpha is None else self.lora_alpha)
        return alpha * math.sqrt(self.r) if self.type == "rslora" else alpha

    def include_patterns(self) -> list[str] | None:
        """Spell out which sites are wanted, whether `targets` or `include` says it.

        Returns:
            Substrings of site names as official files have them; None means every site.
        """
        patterns = self.include if self.include is not None else _TARGETS[self.targets]
        return None if patterns is None else [_official_pattern(text) for text in patterns]

    def exclude_patterns(self) -> list[str]:
        """Spell out which sites are not wanted, in the same form."""
        convolutions = _CONVOLUTIONS if self.targets == "all-linear" else []
        return [*convolutions, *(_official_pattern(text) for text in self.exclude)]


class ObjectiveSection(_Section):
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


class OptimSection(_Section):
    """How the adapter's tensors move."""

    name: Literal["adamw"] = "adamw"
    lr: Positive = 1e-4
    weight_decay: Weight = 0.01
    betas: tuple[
        Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]
    ] = (0.9, 0.95)
    schedule: Literal["constant", "cosine", "inverse"] = "constant"
    warmup_steps: Steps = 0
    max_grad_norm: Positive | None = 1.0


class TrainSection(_Section):
    """How long, from which seed and in which precision."""

    max_steps: Count = 1000
    seed: Annotated[int, Field(ge=0, lt=1 << 63), BeforeValidator(_no_bool)] = 42
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    base_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    grad_accum: Count = 1
    checkpointing: Literal["auto"] | bool = "auto"
    compile: bool = False

    @field_validator("checkpointing", mode="before")
    @classmethod
    def _auto_or_bool(cls, value: object) -> object:
        if value != "auto" and not isinstance(value, bool):
            raise ValueError(f"must be auto, true or false, got {value!r}")
        return value


class ValidationSection(_Section):
    """The paired loss of base and adapter on fixed tuples."""

    every: Steps = 100
    tuples: Count = 64


class PreviewSection(_Section):
    """Audio of base and adapter side by side during the run."""

    every: Steps = 500
    prompts: list[str] = []
    duration_s: Positive | None = None
    steps: Count | None = None


class CheckpointSection(_Section):
    """How often the run can be resumed from, and how many of those stay."""

    every: Count = 200
    keep: Count = 3


class Recipe(_Section):
    """One training run, fully described.

    `validate` in a recipe is the attribute `validation` here, and `adapter.from` is
    `adapter.from_`: Python and pydantic have taken those names.
    """

    model: str | None = None
    data: DataSection = DataSection()
    adapter: AdapterSection = AdapterSection()
    objective: ObjectiveSection = ObjectiveSection()
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
