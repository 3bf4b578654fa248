"""How strongly loaded adapters act: where, and at which noise levels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from sa3lora.adapters.effective import Term
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.sites import matches
from sa3lora.errors import AdapterError

CONDITIONERS = "conditioners."


@dataclass(frozen=True)
class Setting:
    """Strength of one adapter, 0 the base and 1 as trained, and what it is limited to.

    Attributes:
        strength: In the transformer, and in the conditioners unless they have their own.
        conditioner_strength: In the conditioners; None is `strength`.
        skip_layers: Patterns of layers that it leaves alone, as in `adapter.exclude`.
        interval: Noise levels at which it acts in the transformer, both ends included. The
            conditioners run once, before any noise level, and are not limited by it.
    """

    strength: float = 1.0
    conditioner_strength: float | None = None
    skip_layers: tuple[str, ...] = ()
    interval: tuple[float, float] = (0.0, 1.0)

    def at(self, site: str, noise_level: float | None) -> float:
        """Give the strength in one layer; without a noise level the interval does not count."""
        if self.skip_layers and matches(site, self.skip_layers):
            return 0.0
        if site.startswith(CONDITIONERS):
            own = self.conditioner_strength
            return float(self.strength if own is None else own)
        low, high = self.interval
        inside = noise_level is None or low <= noise_level <= high
        return float(self.strength) if inside else 0.0

    def check(self, name: str, sites: Iterable[str]) -> None:
        """Refuse what cannot be meant.

        Raises:
            AdapterError: If a strength is not finite, the interval is not one within 0 and 1, or a
                pattern matches none of the adapter's layers.
        """
        for strength in (self.strength, self.conditioner_strength):
            if strength is not None and not math.isfinite(strength):
                raise AdapterError(f"the strength of {name!r} must be finite, got {strength}")
        low, high = self.interval
        if not 0.0 <= low <= high <= 1.0:
            raise AdapterError(
                f"the interval of {name!r} must be noise levels LO:HI with 0 <= LO <= HI <= 1, got "
                f"{low:g}:{high:g}"
            )
        known = list(sites)
        for pattern in self.skip_layers:
            if not pattern.strip() or not any(matches(site, [pattern]) for site in known):
                raise AdapterError(
                    f"skip_layers of {name!r}: {pattern!r} matches none of its {len(known)} "
                    f"layers; one is called {known[0]}"
                )


@dataclass(frozen=True)
class StackState:
    """All that decides what the weights of a model are, beside the base."""

    adapters: Mapping[str, AdapterFile] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    enabled: bool = True
    noise_level: float | None = None

    def with_adapter(self, name: str, adapter: AdapterFile, setting: Setting) -> StackState:
        """Add an adapter, or put another in its place."""
        adapters = {**self.adapters, name: adapter}
        return replace(self, adapters=adapters, settings={**self.settings, name: setting})

    def without(self, name: str) -> StackState:
        """Leave one out."""
        left = [other for other in self.adapters if other != name]
        return replace(
            self,
            adapters={other: self.adapters[other] for other in left},
            settings={other: self.settings[other] for other in left},
        )

    def acting(self, *, in_order: bool) -> dict[str, list[Term]]:
        """List what acts on each layer, by content hash or in the order of loading."""
        found: dict[str, list[Term]] = {}
        for name, adapter in self.adapters.items() if self.enabled else ():
            for site in adapter.tensors:
                strength = self.settings[name].at(site, self.noise_level)
                if strength != 0.0:
                    found.setdefault(site, []).append(Term(adapter, site, strength))
        if in_order:
            return found
        return {site: sorted(terms, key=lambda t: t.sort_key) for site, terms in found.items()}
