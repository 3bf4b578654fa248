"""Train, mix, evaluate and play LoRA adapters for Stable Audio 3.

Names are loaded when first used, so that `import sa3lora` costs nothing and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sa3lora.errors import Sa3LoraError as Sa3LoraError
    from sa3lora.pipeline import SA3Pipeline as SA3Pipeline
    from sa3lora.recipe import Recipe as Recipe
    from sa3lora.recipe import load_recipe as load_recipe
    from sa3lora.runs import RunFolder as RunFolder

__version__ = "0.1.0"

_HOME = {
    "Recipe": "sa3lora.recipe",
    "RunFolder": "sa3lora.runs",
    "SA3Pipeline": "sa3lora.pipeline",
    "Sa3LoraError": "sa3lora.errors",
    "load_recipe": "sa3lora.recipe",
}

__all__ = ["Recipe", "RunFolder", "SA3Pipeline", "Sa3LoraError", "__version__", "load_recipe"]


def __getattr__(name: str) -> Any:
    """Import the module that holds a public name, once."""
    if name not in _HOME:
        raise AttributeError(f"module 'sa3lora' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List public names for completion, loaded or not."""
    return sorted(__all__)
