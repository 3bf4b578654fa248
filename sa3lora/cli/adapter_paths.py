"""`PATH[=STRENGTH[:CONDITIONERS]][@LO:HI]` on the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sa3lora.errors import UsageError


@dataclass(frozen=True)
class PlayedAdapter:
    """An adapter file, and how it acts; see `SA3Pipeline.load_adapter`."""

    path: Path
    strength: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    conditioner_strength: float | None = None
    skip_layers: tuple[str, ...] = ()


def parse_played_path(text: str) -> PlayedAdapter:
    """Split `PATH[=STRENGTH[:CONDITIONERS]][@LO:HI]`; the path may hold `=`, `:` and `@` itself.

    Raises:
        UsageError: If a strength is not a finite number, or LO:HI no interval within 0 and 1.
        AdapterError: If there is no such file.
    """
    rest, separator, levels = text.rpartition("@")
    # An @ in a file's name is no interval: none without a colon, none in the path of a strength.
    if not separator or ":" not in levels or "/" in levels or Path(text).exists():
        return _parse_strengths(text)
    low, _, high = levels.partition(":")
    try:
        interval = float(low), float(high)
    except ValueError:
        interval = math.nan, math.nan
    if not 0.0 <= interval[0] <= interval[1] <= 1.0:
        raise UsageError(
            f"{text}: noise levels must be @LO:HI with 0 <= LO <= HI <= 1, got @{levels}; "
            "write PATH=0.7@0:0.5"
        )
    return replace(_parse_strengths(rest), interval=interval)


def _parse_strengths(text: str) -> PlayedAdapter:
    start, colon, conditioners = text.rpartition(":")
    if Path(text).exists() or not colon or "=" not in start or "=" in conditioners:
        return PlayedAdapter(*parse_weighted_path(text))
    strength = _strength(conditioners, text)
    return PlayedAdapter(*parse_weighted_path(start), conditioner_strength=strength)


def skip_layers(adapters: Sequence[PlayedAdapter], texts: Sequence[str]) -> list[PlayedAdapter]:
    """Let adapters leave layers alone: each text is `[N=]PATTERN`, N counting adapters from 1.

    Raises:
        UsageError: If there is no adapter with that number, or none at all.
    """
    changed = list(adapters)
    for text in texts:
        number, equals, pattern = text.rpartition("=")
        if not pattern.strip():
            raise UsageError(f"--skip-layers {text!r}: there is no pattern; write layers[0-3]")
        if equals and not (number.isdecimal() and 1 <= int(number) <= len(changed)):
            raise UsageError(
                f"--skip-layers {text}: there is no adapter {number}, there are {len(changed)}"
            )
        if not changed:
            raise UsageError("--skip-layers needs --adapter PATH, whose layers they are")
        for n in [int(number) - 1] if equals else range(len(changed)):
            changed[n] = replace(changed[n], skip_layers=(*changed[n].skip_layers, pattern))
    return changed


def parse_weighted_path(text: str) -> tuple[Path, float]:
    """Split `PATH=STRENGTH`; without a strength it is 1. The path may hold `=` itself.

    A run folder stands for the adapter in it, a PEFT folder for itself.

    Raises:
        UsageError: If the strength is not a finite number.
        AdapterError: If there is no such file.
    """
    path, separator, number = text.rpartition("=")
    if not separator or Path(text).exists():
        return adapter_file(Path(text)), 1.0
    strength = _strength(number, text)
    return adapter_file(Path(path)), strength


def _strength(number: str, text: str) -> float:
    try:
        strength = float(number)
    except ValueError:
        raise UsageError(
            f"{text}: the strength must be a number, got {number!r}; write PATH=0.7"
        ) from None
    if not math.isfinite(strength):
        raise UsageError(f"{text}: the strength must be finite, got {number}; write PATH=0.7")
    return strength


def adapter_file(path: Path) -> Path:
    """Give what to read for a path: the adapter of a run or checkpoint, else the path itself.

    Raises:
        AdapterError: If there is no such file, or a folder holds no adapter.
    """
    if path == Path():  # an empty argument, or nothing before the =
        raise UsageError("an adapter has no path: give PATH or PATH=STRENGTH")
    from sa3lora.adapters.find import find_adapter

    return find_adapter(path)
