"""What must be the same for a run to go on: recipe, dataset and model."""

from __future__ import annotations

from typing import Any

from sa3lora.errors import RunError
from sa3lora.recipe import Recipe
from sa3lora.training.optim import ENDING_SCHEDULES

# Keys that change nothing about the steps themselves.
_FREE_SECTIONS = ("preview", "checkpoint")
_FREE_KEYS = (
    "data.root", "model", "validate.every", "validate.select", "validate.patience",
    "validate.drift",
)  # fmt: skip


def run_identity(recipe: Recipe, *, dataset: str, dit_hash: str) -> dict[str, Any]:
    """Collect what decides the steps of a run, as flat JSON values by name.

    Args:
        recipe: The recipe; where the dataset lies and how often things are saved do not count,
            and `train.max_steps` only where the schedule ends with it.
        dataset: Fingerprint of the dataset.
        dit_hash: Hash of the base model.
    """
    flat: dict[str, Any] = {}
    for section, content in recipe.model_dump(mode="json", by_alias=True).items():
        if section in _FREE_SECTIONS:
            continue
        if not isinstance(content, dict):
            flat[section] = content
            continue
        for key, value in content.items():
            flat[f"{section}.{key}"] = value
    for key in _FREE_KEYS:
        flat.pop(key, None)
    if recipe.optim.schedule not in ENDING_SCHEDULES:
        del flat["train.max_steps"]
    return {**flat, "dataset": dataset, "base model": dit_hash}


def check_identity(before: dict[str, Any], now: dict[str, Any], *, name: str) -> None:
    """Refuse to go on with a run that was something else.

    Raises:
        RunError: Naming everything that changed, with both values.
    """
    changed = [
        f"{key}: was {_short(before.get(key))}, is {_short(now.get(key))}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if changed:
        listing = "\n  ".join(changed)
        raise RunError(
            f"run {name} cannot go on, because it was started otherwise:\n  {listing}\n"
            "Restore these, or start a new run with another --name."
        )


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text
