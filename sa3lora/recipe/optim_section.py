"""The `optim` section: which optimizer, at which rate, over which schedule."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sa3lora.recipe.section import Positive, Section, Steps, Weight

# Prodigy multiplies its own estimate of the rate with `lr`.
_PRODIGY_LR = 1.0
_PRODIGY_RANGE = (0.01, 100.0)

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class OptimSection(Section):
    """How the adapter's tensors move."""

    name: Literal["adamw", "adamw8bit", "prodigy", "muon"] = "adamw"
    lr: Positive = 1e-4
    lora_plus_ratio: Positive = 1.0
    weight_decay: Weight = 0.01
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    schedule: Literal["constant", "cosine", "linear", "inverse"] = "constant"
    warmup_steps: Steps = 0
    min_lr: Weight = 0.0
    max_grad_norm: Positive | None = 1.0
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _prodigy_needs_no_rate(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("name") == "prodigy" and "lr" not in values:
            return {**values, "lr": _PRODIGY_LR}
        return values

    @model_validator(mode="after")
    def _fits_prodigy(self) -> OptimSection:
        if self.name != "prodigy":
            return self
        low, high = _PRODIGY_RANGE
        if not low <= self.lr <= high:
            raise ValueError(
                "prodigy finds the rate itself and optim.lr multiplies it: "
                f"leave optim.lr out or set it to 1, got {self.lr:g}"
            )
        if self.lora_plus_ratio != 1.0:
            raise ValueError(
                "prodigy has one rate for all tensors: leave optim.lora_plus_ratio at 1, "
                f"got {self.lora_plus_ratio:g}"
            )
        return self

    @model_validator(mode="after")
    def _floor_is_below_the_peak(self) -> OptimSection:
        if self.min_lr > self.lr:
            raise ValueError(
                f"optim.min_lr is where the rate falls to: at most optim.lr = {self.lr:g}, "
                f"got {self.min_lr:g}"
            )
        if self.min_lr > 0 and self.schedule == "constant":
            raise ValueError(
                "a constant rate never falls to optim.min_lr: leave it out, or take "
                "optim.schedule=cosine"
            )
        return self
