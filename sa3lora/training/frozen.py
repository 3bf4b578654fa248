"""How the frozen base of a run is held: what that allows, and the bytes it takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.quantised import quantised_problem
from sa3lora.errors import ModelError, RecipeError
from sa3lora.models.quantised import (
    QUANT_KINDS,
    QuantForm,
    QuantKind,
    block_layers,
    load_bitsandbytes,
)
from sa3lora.recipe import Recipe
from sa3lora.training.precision import Precision


@dataclass(frozen=True)
class FrozenBytes:
    """Bytes that frozen weights take on the device.

    Attributes:
        held: All the time.
        unpacking: Beside them while one weight that is held in few bits is multiplied with.
        away: What lies in CPU memory instead.
    """

    held: int
    unpacking: int = 0
    away: int = 0


def check_base(recipe: Recipe) -> None:
    """Refuse, before anything is loaded, what cannot be trained on a base in few bits.

    Raises:
        RecipeError: If the adapter's type reads the weights, a stack would be folded into them, or
            what quantises is not installed.
    """
    kind = recipe.train.base_dtype
    if kind not in ("int8", "nf4"):
        return
    if (problem := quantised_problem(AdapterConfig.from_section(recipe.adapter))) is not None:
        raise RecipeError(f"train.base_dtype: {kind}, but {problem}.")
    if recipe.adapter.stack:
        raise RecipeError(
            f"train.base_dtype: {kind}, but adapter.stack is folded into the weights, and {kind} "
            "would round most of it away. Keep the base in bfloat16, or train without the stack."
        )
    if recipe.train.compile:
        raise RecipeError(
            f"train.compile: a base in {kind} is not compiled. Set train.compile=false, or keep "
            "the base in bfloat16."
        )
    try:
        load_bitsandbytes(kind)
    except ModelError as error:
        raise RecipeError(f"train.base_dtype: {error}") from error


def frozen_bytes(
    denoiser: nn.Module, precision: Precision, *, offload: bool = False
) -> FrozenBytes:
    """Count the bytes of a base from its shapes; it may be on the meta device.

    Args:
        denoiser: Without adapters, not quantised.
        precision: How it will be held.
        offload: Whether the blocks' weights will be on the device in their turn alone.
    """
    kind, layers = precision.quantised, block_layers(denoiser)
    forms = [] if kind is None else [_form(layer, kind) for layer in layers.values()]
    of_block: Counter[str] = Counter()
    for name, layer in layers.items():
        bias = 0 if layer.bias is None else layer.bias.numel() * precision.base.itemsize
        weight = layer.weight.numel() * precision.base.itemsize
        of_block[_block(name)] += bias + (weight if kind is None else _form(layer, kind).num_bytes)
    numbers = sum(parameter.numel() for parameter in denoiser.parameters())
    numbers -= sum(p.numel() for layer in layers.values() for p in layer.parameters())
    blocks = sum(of_block.values())
    here = max(of_block.values()) if offload else blocks
    return FrozenBytes(
        held=numbers * precision.base.itemsize + here,
        unpacking=max((form.unpacking_bytes(precision.compute) for form in forms), default=0),
        away=blocks - here,
    )


def _block(name: str) -> str:
    return ".".join(name.split(".")[:4])  # model.transformer.layers.N


def _form(layer: nn.Linear, kind: QuantKind) -> QuantForm:
    return QuantForm(kind, (layer.out_features, layer.in_features))


def held_in(name: str) -> Precision:
    """Give the number types of a base named as `train.base_dtype`, products in bfloat16."""
    kind = next((each for each in QUANT_KINDS if each == name), None)
    dtype = torch.float32 if name == "float32" else torch.bfloat16
    return Precision(dtype, torch.bfloat16, quantised=kind)
