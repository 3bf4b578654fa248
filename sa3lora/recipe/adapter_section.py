"""The `adapter` section: which type, of which rank, on which layers, from what start."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sa3lora.recipe.section import Count, Positive, Section

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


def official_pattern(text: str) -> str:
    """Turn `layers[0-11]` into the official `layers.[0-11].`, `layers[3]` into `layers.3.`."""

    def dotted(match: re.Match[str]) -> str:
        numbers = match[1]
        return f"layers.[{numbers}]." if "-" in numbers else f"layers.{numbers}."

    return _LAYERS.sub(dotted, text)


def _new_name(value: object) -> object:
    return "dora-rows" if value == "dora" else value


def _stack_entry(text: str) -> tuple[Path, float]:
    path, equals, number = text.rpartition("=")
    if not equals or Path(text).exists():  # a path may hold = itself
        path, number = text, "1"
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not path or not math.isfinite(strength):
        raise ValueError(f"must be PATH=STRENGTH such as runs/vinyl=0.7, got {text!r}")
    if strength == 0.0:
        raise ValueError(f"at strength 0 an adapter does nothing: leave {text!r} out")
    return Path(path), strength


class AdapterSection(Section):
    """What is added to the base model."""

    type: Annotated[
        Literal[
            "lora", "dora-rows", "dora-cols", "bora",
            "lora-xs", "dora-rows-xs", "dora-cols-xs", "bora-xs", "lokr", "rslora",
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
    stack: list[str] = []
    decompose_factor: int = -1

    @model_validator(mode="after")
    def _targets_or_include(self) -> AdapterSection:
        if self.include is not None and self.targets != "all":
            raise ValueError("give targets or include, not both: targets is short for include")
        return self

    @field_validator("stack")
    @classmethod
    def _strengths(cls, value: list[str]) -> list[str]:
        for text in value:
            _stack_entry(text)
        return value

    @model_validator(mode="after")
    def _fits_lokr(self) -> AdapterSection:
        if self.type == "lokr" and self.lora_dropout > 0:
            raise ValueError(f"lokr has no lora_dropout: leave it at 0, got {self.lora_dropout:g}")
        if self.type != "lokr" and self.decompose_factor != -1:
            raise ValueError(f"decompose_factor belongs to type lokr, got {self.type}")
        if self.decompose_factor != -1 and self.decompose_factor < 2:
            raise ValueError(
                "decompose_factor is about the size of the first of two factors: at least 2, or -1 "
                f"for near the root of a layer's size, got {self.decompose_factor}"
            )
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

    def stack_entries(self) -> list[tuple[Path, float]]:
        """Split every `PATH=STRENGTH` of `stack`; without a strength it is 1."""
        return [_stack_entry(text) for text in self.stack]

    def include_patterns(self) -> list[str] | None:
        """Spell out which sites are wanted, whether `targets` or `include` says it.

        Returns:
            Substrings of site names as official files have them; None means every site.
        """
        patterns = self.include if self.include is not None else _TARGETS[self.targets]
        return None if patterns is None else [official_pattern(text) for text in patterns]

    def exclude_patterns(self) -> list[str]:
        """Spell out which sites are not wanted, in the same form."""
        convolutions = _CONVOLUTIONS if self.targets == "all-linear" else []
        return [*convolutions, *(official_pattern(text) for text in self.exclude)]
