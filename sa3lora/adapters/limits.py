"""What a file may ask for before it is refused: sizes, names, ranks, patterns.

Adapters are passed from hand to hand. Every number in a header is checked against these before it
decides how much memory or time anything takes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

# The header of a rank-16 adapter of the largest model has 0.2 MB, of a full checkpoint 0.13 MB.
MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 8
MAX_SIDE = 1 << 40
MAX_NAME = 512
MAX_RANK = 1 << 16
# A rank-128 adapter of the largest model has 0.7 GB in float32.
MAX_ADAPTER_BYTES = 8 << 30
MAX_JSON_BYTES = 4 << 20
_MAX_PATTERNS = 4096
_MAX_PATTERN = 512
# No released model has more than 229 layers to name.
_MAX_EXPANSION = 10_000
_RANGE = re.compile(r"\[(\d+)-(\d+)\]")


def is_shape(value: object) -> bool:
    """Tell whether a JSON value is a list of sizes that can be multiplied safely."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMENSIONS
        and all(type(side) is int and 0 <= side <= MAX_SIDE for side in value)
    )


def is_name(value: str) -> bool:
    """Tell whether a tensor may be called this: printable, and not endless."""
    return 0 < len(value) <= MAX_NAME and value.isprintable()


def pattern_problem(key: str, patterns: Iterable[str]) -> str | None:
    """Say why `include` or `exclude` patterns would take too long to expand, or None."""
    given = list(patterns)
    if len(given) > _MAX_PATTERNS or any(len(pattern) > _MAX_PATTERN for pattern in given):
        return (
            f"lora_config.{key} must be at most {_MAX_PATTERNS} patterns of {_MAX_PATTERN} letters"
        )
    for pattern in given:
        counts = [abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(pattern)]
        if math.prod(counts) > _MAX_EXPANSION:
            shown = pattern if len(pattern) <= 40 else f"{pattern[:40]}…"
            return (
                f"lora_config.{key}: {shown!r} stands for more than {_MAX_EXPANSION} names; "
                "write a narrower range"
            )
    return None
