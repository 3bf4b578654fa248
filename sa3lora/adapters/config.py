"""What an adapter is: its type, rank, scale and the sites it was asked to change."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sa3lora.adapters.limits import pattern_problem
from sa3lora.errors import AdapterError

if TYPE_CHECKING:
    from sa3lora.recipe import AdapterSection

LOW_RANK = ("lora_A", "lora_B")

# Tensors that a file holds for every site, by adapter type.
TENSORS: Mapping[str, tuple[str, ...]] = {
    "lora": LOW_RANK,
    "dora-rows": (*LOW_RANK, "magnitude"),
    "dora-cols": (*LOW_RANK, "magnitude"),
    "bora": (*LOW_RANK, "magnitude_r", "magnitude_c"),
    "lora-xs": ("M_xs",),
    "dora-rows-xs": ("M_xs", "magnitude"),
    "dora-cols-xs": ("M_xs", "magnitude"),
    "bora-xs": ("M_xs", "magnitude_r", "magnitude_c"),
}
INITS = ("default", "pissa")
ADAPTER_TYPES = tuple(TENSORS)
# Beside those eight, which every tool for SA3 knows: a type that exists as a PEFT folder only.
LOKR = "lokr"
# What an `-xs` file may carry beside them: the singular vectors its M_xs acts in.
BASES = ("U", "V")
TENSOR_NAMES = frozenset(name for names in TENSORS.values() for name in names) | set(BASES)

_KNOWN_KEYS = ("rank", "alpha", "adapter_type", "dropout", "include", "exclude")


def parameter_sizes(adapter_type: str, r: int, fan_out: int, fan_in: int) -> dict[str, int]:
    """Count the numbers of every trained tensor of one layer."""
    sizes = {
        "lora_A": r * fan_in,
        "lora_B": fan_out * r,
        "M_xs": r * r,
        "magnitude": fan_out if "rows" in adapter_type else fan_in,
        "magnitude_r": fan_out,
        "magnitude_c": fan_in,
    }
    return {name: sizes[name] for name in TENSORS[adapter_type]}


@dataclass(frozen=True)
class AdapterConfig:
    """Type, rank and scale of one adapter, and the patterns that chose its sites.

    `lora_alpha=None` means `r`, that is a scale of 1. An empty pattern list means the same as none.
    `init` is how training starts, `default` or `pissa`; no file holds it. `decompose_factor` is how
    `lokr` splits a size in two, in PEFT's sense. `extra` keeps the header keys that other programs
    wrote.
    """

    type: str = "lora"
    r: int = 16
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    init: str = "default"
    decompose_factor: int = -1
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise AdapterError("adapter settings: " + "; ".join(problems))
        object.__setattr__(self, "include", _patterns(self.include))
        object.__setattr__(self, "exclude", _patterns(self.exclude))

    @property
    def alpha(self) -> float:
        """Numerator of the scale: `lora_alpha`, or `r` when that is not given."""
        return float(self.r if self.lora_alpha is None else self.lora_alpha)

    def scale(self, rank: int) -> float:
        """Factor of the low-rank product of a site whose tensors have this rank."""
        return self.alpha / rank

    def stored(self) -> AdapterConfig:
        """Give what a file of this adapter says: one that began as PiSSA is plain LoRA there.

        Its rank is twice as large, since what it started from is subtracted, at the same scale.
        """
        if self.init == "default":
            return self
        return replace(self, r=2 * self.r, lora_alpha=2 * self.alpha, init="default")

    def to_json(self) -> str:
        """Write the `lora_config` header string as the official tools read it."""
        alpha = int(self.alpha) if self.alpha.is_integer() else self.alpha
        known = {
            "rank": self.r,
            "alpha": alpha,
            "adapter_type": self.type,
            "dropout": self.lora_dropout,
            "include": None if self.include is None else list(self.include),
            "exclude": None if self.exclude is None else list(self.exclude),
        }
        return json.dumps({**known, **self.extra})

    @classmethod
    def from_section(cls, section: AdapterSection) -> AdapterConfig:
        """Take what the `adapter` section of a recipe says, presets spelled out as patterns.

        `rslora` is `lora` with another alpha, which files can say.
        """
        return cls(
            type="lora" if section.type == "rslora" else section.type,
            r=section.r,
            lora_alpha=section.alpha,
            lora_dropout=section.lora_dropout,
            include=_patterns(section.include_patterns()),
            exclude=_patterns(section.exclude_patterns()),
            init=section.init,
            decompose_factor=section.decompose_factor,
        )

    @classmethod
    def from_header(cls, header: Mapping[str, Any], *, adapter_type: str, r: int) -> AdapterConfig:
        """Build from a parsed `lora_config`, with the type and rank the tensors were found to have.

        Raises:
            AdapterError: If a value has the wrong kind; the message names the key.
        """
        alpha = header.get("alpha")
        if alpha is not None and not _is_number(alpha):
            raise AdapterError(f"lora_config.alpha must be a number, got {_short(alpha)}")
        dropout = header.get("dropout", 0.0)
        if not _is_number(dropout):
            raise AdapterError(f"lora_config.dropout must be a number, got {_short(dropout)}")
        for key in ("include", "exclude"):
            value = header.get(key)
            if value is not None and not _is_string_list(value):
                raise AdapterError(
                    f"lora_config.{key} must be a list of strings, got {_short(value)}"
                )
            if problem := pattern_problem(key, value or ()):
                raise AdapterError(problem)
        return cls(
            type=adapter_type,
            r=r,
            lora_alpha=None if alpha is None else float(alpha),
            lora_dropout=float(dropout),
            include=_patterns(header.get("include")),
            exclude=_patterns(header.get("exclude")),
            extra={key: value for key, value in header.items() if key not in _KNOWN_KEYS},
        )


def _problems(config: AdapterConfig) -> list[str]:
    problems = []
    if config.type not in (*TENSORS, LOKR):
        known = ", ".join((*ADAPTER_TYPES, LOKR))
        problems.append(f"type must be one of {known}, got {config.type!r}")
    if config.r < 1:
        problems.append(f"r must be at least 1, got {config.r}")
    if config.lora_alpha is not None and not math.isfinite(config.lora_alpha):
        problems.append(f"lora_alpha must be finite, got {config.lora_alpha}")
    if config.init not in INITS:
        problems.append(f"init must be one of {', '.join(INITS)}, got {config.init!r}")
    elif config.init != "default" and config.type != "lora":
        problems.append(f"init {config.init} belongs to type lora, got {config.type!r}")
    if not 0.0 <= config.lora_dropout < 1.0:
        problems.append(f"lora_dropout must be in [0, 1), got {config.lora_dropout}")
    return problems


def _patterns(value: Any) -> tuple[str, ...] | None:
    # Official readers take [] as "no site at all", which nobody means: empty is the same as none.
    return tuple(value) if value else None


def _is_number(value: Any) -> bool:
    """Tell numbers from all else; an integer that no float can hold is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 1 << 1000


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _is_string_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
