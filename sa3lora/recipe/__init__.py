"""What a training run does: the recipe's schema, and reading it from YAML with overrides."""

from __future__ import annotations

from sa3lora.recipe.adapter_section import AdapterSection, official_pattern
from sa3lora.recipe.distill_section import DistillSection
from sa3lora.recipe.loading import load_recipe
from sa3lora.recipe.optim_section import OptimSection
from sa3lora.recipe.packaged import (
    prompt_names,
    read_prompts,
    recipe_names,
    recipes_folder,
)
from sa3lora.recipe.schema import (
    CheckpointSection,
    DataSection,
    ObjectiveSection,
    PreviewSection,
    Recipe,
    TrainSection,
    ValidationSection,
)

__all__ = [
    "AdapterSection",
    "CheckpointSection",
    "DataSection",
    "DistillSection",
    "ObjectiveSection",
    "OptimSection",
    "PreviewSection",
    "Recipe",
    "TrainSection",
    "ValidationSection",
    "load_recipe",
    "official_pattern",
    "prompt_names",
    "read_prompts",
    "recipe_names",
    "recipes_folder",
]
