"""Whether the clips of a batch lie end to end in one sequence instead of padded side by side."""

from __future__ import annotations

import torch

from sa3lora.errors import RecipeError
from sa3lora.models.attention import choose_backend
from sa3lora.recipe import Recipe


def uses_packing(recipe: Recipe, *, device: str, compute: torch.dtype) -> bool:
    """Resolve `data.packing`; both ways give every clip the same loss.

    `auto` packs where a varlen kernel runs. Elsewhere packed clips are attended to one by one,
    which is as exact but slower for many short ones. A compiled model would be compiled anew for
    every way that lengths can meet, so `auto` pads there.

    Raises:
        RecipeError: If packed batches are asked for of a compiled model.
    """
    wanted = recipe.data.packing
    if wanted is True and recipe.train.compile:
        raise RecipeError(
            "data.packing: packed batches would be compiled anew for every way that lengths meet. "
            "Set data.packing=auto, which pads them, or train.compile=false."
        )
    if wanted != "auto":
        return bool(wanted)
    return not recipe.train.compile and choose_backend(device, compute) != "sdpa"
