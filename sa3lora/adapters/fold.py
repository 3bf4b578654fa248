"""Play adapters at any strengths by folding them into the weights of a model.

Strength 0 is the base model bit for bit, 1 is as trained, and the order of loading moves no bit;
`effective` has the rule. What an adapter makes of a weight is worked out once and kept, so that
another strength costs one pass over the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sa3lora.adapters.compat import shape_problems
from sa3lora.adapters.deltas import is_additive
from sa3lora.adapters.effective import (
    Term,
    fold_into,
    fold_officially,
)
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.settings import Setting, StackState
from sa3lora.adapters.sites import find_layers, matrix_shape
from sa3lora.adapters.writer import FOLDABLE, WeightWriter
from sa3lora.errors import AdapterError, AdapterMismatchError

__all__ = ["AdapterStack", "Setting", "StrengthRule"]

StrengthRule = Literal["exact", "official"]


class AdapterStack:
    """Adapters loaded on one model, each with a setting that may change at any time.

    The stack writes into the layers of `root`; one stack at a time may own a model. A bfloat16
    layer is left as it is: its low-rank changes run beside it in float32, and types with
    magnitudes are refused there.

    Args:
        root: Module with children `model` and `conditioners`, or any module with linear layers.
        keep_on: Device for the kept base weights; None keeps them beside the weights.
        strength_rule: `exact` is this project's; `official` gives what the released tools play:
            magnitudes at full force at any strength but 0, adapters in the order of loading.
    """

    def __init__(
        self,
        root: nn.Module,
        *,
        keep_on: torch.device | str | None = None,
        strength_rule: StrengthRule = "exact",
    ) -> None:
        """Start without adapters; the model is untouched until one is added."""
        if strength_rule not in get_args(StrengthRule):
            raise AdapterError(f"strength_rule must be exact or official, got {strength_rule!r}")
        self._layers = find_layers(root)
        self._rule = strength_rule
        fold = fold_into if strength_rule == "exact" else fold_officially
        self._writer = WeightWriter(self._layers, keep_on=keep_on, fold=fold)
        self._state = StackState()
        self._applied: dict[str, list[Term]] = {}

    @property
    def names(self) -> list[str]:
        """Names of the loaded adapters, in order of loading."""
        return list(self._state.adapters)

    @property
    def strengths(self) -> dict[str, float]:
        """Strength of every loaded adapter, in the transformer."""
        return {name: setting.strength for name, setting in self._state.settings.items()}

    @property
    def enabled(self) -> bool:
        """False while `set_enabled` has put all adapters to rest."""
        return self._state.enabled

    @property
    def has_intervals(self) -> bool:
        """Tell whether what acts depends on the noise level."""
        return any(setting.interval != (0.0, 1.0) for setting in self._state.settings.values())

    @property
    def bases(self) -> dict[str, Tensor]:
        """Untouched weights of the layers that something is folded into, by site."""
        return dict(self._writer.bases)

    def adapter(self, name: str) -> AdapterFile:
        """Give a loaded adapter.

        Raises:
            AdapterError: If there is none of that name.
        """
        self._require([name])
        return self._state.adapters[name]

    def setting(self, name: str) -> Setting:
        """Give how a loaded adapter acts.

        Raises:
            AdapterError: If there is none of that name.
        """
        self._require([name])
        return self._state.settings[name]

    def add(
        self,
        adapter: AdapterFile,
        name: str,
        *,
        strength: float = 1.0,
        setting: Setting | None = None,
    ) -> None:
        """Load an adapter under a new name and fold it in.

        Args:
            adapter: The adapter.
            name: Its name in this stack.
            strength: Its strength everywhere.
            setting: More than a strength; it then counts instead.

        Raises:
            AdapterError: If the name is taken, the setting is no valid one, or the layers' type
                cannot take this adapter.
            AdapterMismatchError: If the model lacks a site or has it in another size.
        """
        if name in self._state.adapters:
            raise AdapterError(
                f"an adapter named {name!r} is loaded already (loaded: {', '.join(self.names)}). "
                "Unload it first, or choose another name."
            )
        self._check_fit(adapter, name)
        chosen = setting or Setting(strength=float(strength))
        chosen.check(name, adapter.sites)
        self._change(self._state.with_adapter(name, adapter, chosen))

    def swap(self, name: str, adapter: AdapterFile) -> None:
        """Put another adapter in the place of a loaded one, with its setting, in one change.

        Raises:
            AdapterError: If there is none of that name, or the new one does not go there.
        """
        self._require([name])
        self._check_fit(adapter, name)
        self._state.settings[name].check(name, adapter.sites)
        self._change(self._state.with_adapter(name, adapter, self._state.settings[name]))

    def set_strengths(self, strengths: Mapping[str, float]) -> None:
        """Change some strengths everywhere, all at once; adapters not named keep theirs.

        Raises:
            AdapterError: If a name is unknown, a strength is not finite, or the result overflows
                the weights' type; everything is then as before.
        """
        self._require(strengths)
        settings = self._state.settings
        self.configure(
            {
                name: replace(settings[name], strength=float(value), conditioner_strength=None)
                for name, value in strengths.items()
            }
        )

    def configure(self, settings: Mapping[str, Setting]) -> None:
        """Change how some adapters act, all at once; adapters not named stay as they are.

        Raises:
            AdapterError: If a name is unknown, a setting is no valid one, or the result overflows
                the weights' type; everything is then as before.
        """
        self._require(settings)
        for name, setting in settings.items():
            setting.check(name, self._state.adapters[name].sites)
        self._change(replace(self._state, settings={**self._state.settings, **settings}))

    def set_enabled(self, enabled: bool) -> None:
        """Let all adapters rest, the base being back bit for bit, or act again as they were set."""
        self._change(replace(self._state, enabled=enabled))

    def at_noise_level(self, noise_level: float | None) -> None:
        """Let those adapters act whose interval holds a noise level; None lets all of them.

        Weights change only where the border of an interval was passed.
        """
        self._change(replace(self._state, noise_level=noise_level))

    def remove(self, name: str) -> None:
        """Unload an adapter; what it alone changed is the base again, bit for bit.

        Raises:
            AdapterError: If there is none of that name.
        """
        self._require([name])
        self._change(self._state.without(name))

    def clear(self) -> None:
        """Unload everything and give the base model back."""
        self._change(StackState())

    def _require(self, names: Iterable[str]) -> None:
        unknown = [name for name in names if name not in self._state.adapters]
        if unknown:
            loaded = ", ".join(self.names) or "none"
            raise AdapterError(
                f"no adapter named {', '.join(map(repr, unknown))}; loaded: {loaded}"
            )

    def _check_fit(self, adapter: AdapterFile, name: str) -> None:
        weights = {site: layer.get_parameter("weight") for site, layer in self._layers.items()}
        shapes = {site: matrix_shape(weight.shape) for site, weight in weights.items()}
        problems = shape_problems(adapter, shapes)
        if problems:
            raise AdapterMismatchError("\n  ".join([f"{name!r} does not fit", *problems[:8]]))
        if is_additive(adapter.config.type):
            return
        refused = {weights[site].dtype for site in adapter.sites} - set(FOLDABLE)
        if refused:
            raise AdapterError(
                f"{name!r} is {adapter.config.type}: its magnitudes have to be folded into the "
                f"weights, which {refused.pop()} would round away. Load the model in float32 or "
                "float16."
            )

    def _change(self, state: StackState) -> None:
        before = self._state
        self._state = state
        try:
            self._refresh()
        except AdapterError:
            self._state = before
            self._refresh()
            raise

    @torch.no_grad()
    def _refresh(self) -> None:
        """Bring every layer where something else acts than before to what acts now."""
        wanted = self._state.acting(in_order=self._rule == "official")
        self._writer.keep_factors_of(self._state.adapters.values())
        for site in sorted({*wanted, *self._applied}):
            terms, was = wanted.get(site, []), self._applied.pop(site, [])
            if terms:  # known before it is written: a write that fails has to be undone
                self._applied[site] = terms
            if [term.sort_key for term in terms] != [term.sort_key for term in was]:
                self._writer.write(site, terms)
