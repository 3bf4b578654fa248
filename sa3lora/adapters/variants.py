"""The types of Stable Audio 3 as a variant of PEFT's LoRA.

A layer with an adapter gives `base(x) + delta(x)`. With W the untouched weight, D the low-rank
change, g the factors of its rows and c those of its columns (1 where a type has none),

    delta(x) = diag(g) (W + D) diag(c) x - W x  =  (g - 1) (W x + e) + e
           e = W (c - 1) x + D c x

which is exactly 0 while g = c = 1 and D = 0. Dropout acts on what D multiplies and on nothing else.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import layer as lora
from torch import Tensor, nn
from torch.nn import functional

from sa3lora.adapters.config import LOW_RANK
from sa3lora.adapters.fused import low_rank_linear
from sa3lora.adapters.parts import PISSA, AdapterParts
from sa3lora.adapters.quantised import is_quantised
from sa3lora.errors import AdapterError

_FIELD = "sa3_type"
FUSED = ("dora-rows", "lora-xs", "dora-rows-xs")  # beside plain LoRA
_PARTS = "lora_parts"  # the prefix makes PEFT place it with its layer


@dataclasses.dataclass
class Sa3LoraConfig(LoraConfig):  # type: ignore[misc]  # peft has no types
    """PEFT's settings with an adapter type; None is plain LoRA."""

    sa3_type: str | None = dataclasses.field(default=None, metadata={"is_lora_variant": True})

    def __post_init__(self) -> None:
        """Make PEFT wrap layers in classes that know the variant."""
        super().__post_init__()
        self._register_custom_module({nn.Linear: Sa3Linear, nn.Conv1d: Sa3Conv1d})


class Sa3Variant(lora.LoraVariant):  # type: ignore[misc]
    """All types but plain LoRA; which one it is, `AdapterParts` tells."""

    def supports_lora_conversion(self) -> bool:
        """Tell PEFT that these are no plain LoRA."""
        return False

    @staticmethod
    def init(module: Any, adapter_name: str, *, config: Sa3LoraConfig, **_: Any) -> None:
        """Add the parts of the type; their values are set after injection."""
        assert config.sa3_type is not None
        layer = module.get_base_layer()
        parts = AdapterParts(config.sa3_type, r=config.r, layer=layer)
        getattr(module, _PARTS)[adapter_name] = parts
        if config.sa3_type.endswith("-xs"):
            module.frozen_peft_weight_names = {
                **module.frozen_peft_weight_names, adapter_name: LOW_RANK
            }  # fmt: skip

    @staticmethod
    def forward(module: Any, *, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """Add the adapter's change of this input to the result of the layer."""
        parts = parts_of(module, active_adapter)
        down, up = low_rank_of(module, active_adapter)
        with torch.autocast(x.device.type, enabled=False):
            scaling = parts.scaling(down, up)
        rows, cols = scaling.rows, scaling.cols
        scaled = x if cols is None else x * _over_inputs(module, cols)
        dropped = module.lora_dropout[active_adapter](scaled)
        change = _low_rank(module, dropped, down, up)
        if parts.adapter_type == PISSA:
            scale = module.scaling[active_adapter]
            change = change - _low_rank(module, dropped, parts.first_down, scale * parts.first_up)
        if cols is not None:
            change = change + _base(module, parts.untouched, x * _over_inputs(module, cols - 1.0))
        if rows is None:
            return result + change
        alone = parts.shared and module.first_active == active_adapter
        plain = _without_bias(module, result) if alone else _base(module, parts.untouched, x)
        return result + (_over_outputs(module, rows - 1.0) * (plain + change) + change)

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Refuse: strengths and merging go through files, where they are exact."""
        raise _unmergeable(active_adapter)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Refuse, as `merge_safe` does."""
        raise _unmergeable(active_adapter)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Refuse, as `merge_safe` does."""
        raise _unmergeable(active_adapter)


class _Sa3Layer:
    """What both kinds of layers add to PEFT's: the variant, and a place for its parts."""

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type[Sa3Variant] | None]:
        """Name the variants by the fields of the settings that ask for them."""
        return {(): None, (_FIELD,): Sa3Variant}

    @property
    def first_active(self) -> str | None:
        """Name of the adapter that gets the base layer's own result."""
        layer: Any = self
        return next((name for name in layer.active_adapters if name in layer.lora_A), None)

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        """Add an adapter."""
        if not hasattr(self, _PARTS):
            setattr(self, _PARTS, nn.ModuleDict())
        super().update_layer(*args, **kwargs)  # type: ignore[misc]


class Sa3Linear(_Sa3Layer, lora.Linear):  # type: ignore[misc]
    """A linear layer with adapters of any type."""

    adapter_layer_names = (*lora.Linear.adapter_layer_names, _PARTS)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Give what the layer gives with its adapters, in one step where it can be."""
        layer: Any = self
        name = None if args or kwargs else _fusible(layer)
        if name is None:
            slow: Tensor = super().forward(x, *args, **kwargs)
            return slow
        down, up = low_rank_of(layer, name)
        rows = None
        if name in layer.lora_parts:
            with torch.autocast(x.device.type, enabled=False):
                rows = layer.lora_parts[name].scaling(down, up).rows
        base = layer.get_base_layer()
        weight = base.quantised if is_quantised(base) else base.weight
        return low_rank_linear(x, weight, base.bias, down=down, up=up, rows=rows)


class Sa3Conv1d(_Sa3Layer, lora.Conv1d):  # type: ignore[misc]
    """A convolution with adapters of any type."""

    adapter_layer_names = (*lora.Conv1d.adapter_layer_names, _PARTS)


def parts_of(layer: nn.Module, adapter_name: str) -> AdapterParts:
    """Give the parts of an adapter that is a variant."""
    parts = layer.get_submodule(f"{_PARTS}.{adapter_name}")
    assert isinstance(parts, AdapterParts)
    return parts


def is_variant(layer: nn.Module, adapter_name: str) -> bool:
    """Tell whether an injected adapter is something else than plain LoRA."""
    return adapter_name in layer.get_submodule(_PARTS)._modules


def low_rank_of(layer: Any, adapter_name: str) -> tuple[Tensor, Tensor]:
    """Give (A, B) as matrices, scale and M_xs multiplied into B, with their gradient."""
    down = layer.lora_A[adapter_name].weight.flatten(1)
    up = layer.lora_B[adapter_name].weight.flatten(1)
    parts = layer.lora_parts
    if adapter_name in parts and hasattr(parts[adapter_name], "M_xs"):
        with torch.autocast(up.device.type, enabled=False):
            up = up @ parts[adapter_name].M_xs
    return down, layer.scaling[adapter_name] * up


def _fusible(layer: Any) -> str | None:
    """Name the one adapter of a layer that `low_rank_linear` can stand in for, if it can."""
    if layer.disable_adapters or layer.merged:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    base = layer.get_base_layer()
    if len(active) != 1 or not (is_quantised(base) or type(base) is nn.Linear):
        return None
    if not is_quantised(base) and base.weight.requires_grad:
        return None
    name = str(active[0])
    dropout = layer.lora_dropout[name]
    if dropout.training and not isinstance(dropout, nn.Identity):
        return None
    if name not in layer.lora_parts:
        return name
    parts = layer.lora_parts[name]
    fusible: bool = parts.shared and parts.adapter_type in FUSED
    return name if fusible else None


def _low_rank(layer: Any, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    base = layer.get_base_layer()
    if isinstance(base, nn.Conv1d):
        kernel = down.reshape(len(down), base.in_channels, *base.kernel_size)
        return functional.conv1d(base._conv_forward(x, kernel, None), up[:, :, None])
    return functional.linear(functional.linear(x, down), up)


def _base(layer: Any, weight: Tensor, x: Tensor) -> Tensor:
    base = layer.get_base_layer()
    x = x.to(weight.dtype)
    if isinstance(base, nn.Conv1d):
        convolved: Tensor = base._conv_forward(x, weight, None)
        return convolved
    return functional.linear(x, weight)


def _without_bias(layer: Any, result: Tensor) -> Tensor:
    bias = layer.get_base_layer().bias
    return result if bias is None else result - _over_outputs(layer, bias)


def _over_outputs(layer: Any, values: Tensor) -> Tensor:
    return values[:, None] if isinstance(layer.get_base_layer(), nn.Conv1d) else values


_over_inputs = _over_outputs  # channels lie on the same axis; kernels wider than 1 are refused


def _unmergeable(adapter_name: str) -> AdapterError:
    return AdapterError(
        f"{adapter_name!r} is not merged through PEFT. Export it and fold or merge the file."
    )
