"""Number types of a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sa3lora.errors import RecipeError
from sa3lora.models.quantised import QuantKind
from sa3lora.recipe import TrainSection

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Precision:
    """Number types of a run.

    Attributes:
        base: Type that the frozen weights are stored in.
        compute: Type of matrix products; adapters and their optimizer are float32 always.
        quantised: What the linear layers of the blocks are held in instead; None for `base`.
    """

    base: torch.dtype
    compute: torch.dtype
    quantised: QuantKind | None = None

    def __str__(self) -> str:
        """Give both, for the plan."""
        base, compute = (str(dtype).removeprefix("torch.") for dtype in (self.base, self.compute))
        if self.quantised is not None:
            base = f"{self.quantised} in the blocks and {base} around them"
        return f"base {base}, products {compute}, adapter float32"


def choose_precision(train: TrainSection, *, device: str) -> Precision:
    """Resolve `auto`: bfloat16 on CUDA, float32 elsewhere.

    A base of type `auto`, and what is not quantised of one that is, is stored in the type of the
    products, so that it is not converted anew in every layer of every step.

    Raises:
        RecipeError: For float16 products, which need a loss scale that we do not keep.
    """
    if train.dtype == "float16":
        raise RecipeError(
            "train.dtype: float16 loses small gradients; take bfloat16, float32 or auto"
        )
    automatic = torch.bfloat16 if device == "cuda" else torch.float32
    compute = automatic if train.dtype == "auto" else _DTYPES[train.dtype]
    if train.base_dtype == "int8" or train.base_dtype == "nf4":
        return Precision(base=compute, compute=compute, quantised=train.base_dtype)
    base = compute if train.base_dtype == "auto" else _DTYPES[train.base_dtype]
    if base == torch.float16 and compute == torch.float32:
        raise RecipeError("train.base_dtype: float16 needs train.dtype=bfloat16")
    return Precision(base=base, compute=compute)
