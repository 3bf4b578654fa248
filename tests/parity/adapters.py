"""Adapters, stacks and intervals under the official rule, compared with the official code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from torch import Tensor

from sa3lora.adapters.config import ADAPTER_TYPES
from sa3lora.adapters.files import AdapterFile, read_adapter
from sa3lora.adapters.fold import AdapterStack, Setting
from sa3lora.adapters.sites import expand_brackets
from tests.parity.case import Case


def checks() -> list[Callable[[Case], None]]:
    """One for every type, so that each stays small; then stacks and intervals."""
    return [*(_of_type(adapter_type) for adapter_type in ADAPTER_TYPES), stacks, intervals]


def _of_type(adapter_type: str) -> Callable[[Case], None]:
    def check(case: Case) -> None:
        stack = AdapterStack(case.denoiser, strength_rule="official")
        stack.add(_read(case, adapter_type), "a", strength=0.0)
        prefix = f"adapter_{adapter_type}.s"
        names = [name for name in list(case.keys()) if name.startswith(prefix)]
        for key in names:
            digits = key.removeprefix(prefix)  # s05 is 0.5, s2 is 2
            stack.set_strengths({"a": float(f"{digits[0]}.{digits[1:] or 0}")})
            case.compare(key, _velocity(case), bases=adapter_type.endswith("-xs"))
        stack.clear()

    check.__name__ = f"adapter_{adapter_type}"
    return check


def stacks(case: Case) -> None:
    for name, chain in case.parameters["stack"].items():
        stack = AdapterStack(case.denoiser, strength_rule="official")
        for number, (adapter_type, strength) in enumerate(chain):
            stack.add(_read(case, adapter_type), str(number), strength=strength)
        loose = any(adapter_type.endswith("-xs") for adapter_type, _ in chain)
        case.compare(f"stack.{name}", _velocity(case), bases=loose)
        stack.clear()


def intervals(case: Case) -> None:
    group = case.parameters["interval"]
    adapter_type, strength = re.match(r"(\S+) at strength ([\d.]+)", group["adapter"]).groups()
    adapter = _read(case, adapter_type)
    for name, value in group.items():
        if f"interval.{name}" not in case:
            continue
        setting = (
            Setting(float(strength), skip_layers=_filtered(value, adapter.sites))
            if isinstance(value, str)
            else Setting(float(strength), interval=tuple(value))
        )
        stack = AdapterStack(case.denoiser, strength_rule="official")
        stack.add(adapter, "a", setting=setting)
        case.compare(f"interval.{name}", _velocity(case, stack))
        stack.clear()


def _filtered(text: str, sites: Iterable[str]) -> tuple[str, ...]:
    """Translate the official layer filter: lower case, transformer only, names without `model.`."""
    parts = [part for item in text.split(",") for part in expand_brackets(item.strip().lower())]
    return tuple(
        site
        for site in sites
        if site.startswith("model.") and any(p in site.removeprefix("model.") for p in parts)
    )


def _read(case: Case, adapter_type: str) -> AdapterFile:
    return read_adapter(case.folder / f"adapter_{adapter_type}.safetensors")


def _velocity(case: Case, stack: AdapterStack | None = None) -> Tensor:
    conditioning = case.condition(case.parameters["cond"]["prompts"])
    x, t = case["dit.x"], case["dit.t"]
    if stack is not None:  # the conditioners ran; now the first item's noise level counts
        stack.at_noise_level(float(t[0]))
    local = {"keep": case["dit.mask"][:, 0], "known": case["dit.known"]}
    return case.denoiser.velocity(x, t, conditioning, **local)
