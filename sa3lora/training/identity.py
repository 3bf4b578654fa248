"""What must be the same for a run to go on (recipe, dataset, model), and what may change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sa3lora.errors import RunError, UsageError
from sa3lora.recipe import Recipe
from sa3lora.training.optim import ENDING_SCHEDULES

# Keys that change nothing about the steps themselves.
_FREE_SECTIONS = ("preview", "checkpoint")
_FREE_KEYS = (
    "data.root", "model", "validate.every", "validate.select", "validate.patience",
    "validate.drift", "train.offload",
)  # fmt: skip

# What a checkpoint holds fits any value of these, so a user may change them with open eyes.
_CHANGEABLE = {
    "adapter.lora_dropout",
    "data.frames_per_batch",
    "data.max_duration_s",
    "data.packing",
    "data.split",
    "dataset",
    "objective.context_weight",
    "objective.coupling",
    "objective.inpaint",
    "objective.min_snr_gamma",
    "objective.normalisation",
    "objective.prior_prompts",
    "objective.prior_weight",
    "objective.prompt_dropout",
    "objective.shift",
    "objective.silence_s",
    "objective.timesteps",
    "optim.lr",
    "optim.max_grad_norm",
    "optim.min_lr",
    "optim.schedule",
    "optim.warmup_steps",
    "train.base_dtype",
    "train.checkpointing",
    "train.compile",
    "train.dtype",
    "train.grad_accum",
    "train.max_steps",
    "train.seed",
    "validate.tuples",
}
# With another value of these the saved position in the data means nothing.
_OF_THE_ORDER = {
    "data.frames_per_batch",
    "data.max_duration_s",
    "data.packing",
    "data.split",
    "dataset",
    "objective.silence_s",
    "train.seed",
}
# With another value of these validation measures something else than before.
_OF_THE_MEASURE = {
    "data.max_duration_s",
    "data.split",
    "dataset",
    "objective.inpaint",
    "objective.shift",
    "objective.timesteps",
    "validate.tuples",
}
_REASONS = {
    "adapter.": "the trained tensors are those of this adapter; start a new run with adapter.from "
    "where its file can be read",
    "optim.": "the saved state of the optimizer was made with it",
    "base model": "an adapter belongs to its base",
}


@dataclass(frozen=True)
class Changes:
    """What a run goes on with that it was not started with.

    Attributes:
        values: Value before and value now, by key.
    """

    values: Mapping[str, tuple[Any, Any]]

    def __bool__(self) -> bool:
        """Whether anything changed."""
        return bool(self.values)

    def lines(self) -> list[str]:
        """List the keys with both values."""
        return [
            f"{key}: was {_short(old)}, is {_short(new)}" for key, (old, new) in self.values.items()
        ]

    @property
    def measure(self) -> bool:
        """Whether validation losses before and after cannot be compared."""
        return of_the_measure(self.values)

    def to_json(self, *, step: int) -> dict[str, Any]:
        """Give plain values for the manifest."""
        values = {key: {"was": old, "is": new} for key, (old, new) in self.values.items()}
        return {"step": step, "keys": values}


def of_the_measure(keys: Collection[str]) -> bool:
    """Tell whether a change of these keys means that validation measures something else."""
    return not _OF_THE_MEASURE.isdisjoint(keys)


def of_the_order(keys: Collection[str]) -> bool:
    """Tell whether a change of these keys means that the data begin anew."""
    return not _OF_THE_ORDER.isdisjoint(keys)


def run_identity(recipe: Recipe, *, dataset: str, dit_hash: str) -> dict[str, Any]:
    """Collect what decides the steps of a run, as flat JSON values by name.

    Args:
        recipe: The recipe; where the dataset lies and how often things are saved do not count,
            and `train.max_steps` only where the schedule ends with it.
        dataset: Fingerprint of the dataset.
        dit_hash: Hash of the base model.
    """
    flat = _flat(recipe)
    for key in _FREE_KEYS:
        flat.pop(key, None)
    if recipe.optim.schedule not in ENDING_SCHEDULES:
        del flat["train.max_steps"]
    return {**flat, "dataset": dataset, "base model": dit_hash}


def _flat(recipe: Recipe) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, content in recipe.model_dump(mode="json", by_alias=True).items():
        if section in _FREE_SECTIONS:
            continue
        if not isinstance(content, dict):
            flat[section] = content
            continue
        for key, value in content.items():
            flat[f"{section}.{key}"] = value
    return flat


def check_changeable(keys: Collection[str]) -> None:
    """Refuse to let change what does not exist, or what a checkpoint cannot go on with.

    Raises:
        UsageError: Naming the key, and what can be changed or why this cannot.
    """
    known = {*_flat(Recipe()), "dataset", "base model"} - set(_FREE_KEYS)
    for key in keys:
        if key in _CHANGEABLE:
            continue
        if key in _FREE_KEYS or key.partition(".")[0] in _FREE_SECTIONS:
            raise UsageError(f"--allow-change {key}: not needed, a run goes on with any value.")
        if key not in known:
            raise UsageError(
                f"--allow-change {key}: there is no such key. These can be changed: "
                f"{', '.join(sorted(_CHANGEABLE))}."
            )
        reason = next(
            (why for start, why in _REASONS.items() if key.startswith(start)),
            "what is saved was made with it",
        )
        raise UsageError(f"--allow-change {key}: cannot be changed, because {reason}.")


def check_identity(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    name: str,
    allow: Collection[str] = (),
) -> Changes:
    """Refuse to go on with a run that was something else.

    Args:
        before: What the run was started with.
        now: What it would go on with.
        name: Of the run.
        allow: Keys whose change the user wants.

    Returns:
        What changes, all of it allowed.

    Raises:
        RunError: Naming everything else that changed, with both values.
    """
    different = {
        key: (before.get(key), now.get(key))
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    }
    allowed = set(allow)
    if {"optim.schedule", "train.max_steps"} & allowed:
        # The length of the run counts with some schedules only; it comes and goes with them.
        allowed |= {"train.max_steps"}
    refused = Changes({k: v for k, v in different.items() if k not in allowed})
    if refused:
        listing = "\n  ".join(refused.lines())
        changeable = [key for key in refused.values if key in _CHANGEABLE]
        flags = " ".join(f"--allow-change {key}" for key in changeable)
        raise RunError(
            f"run {name} cannot go on, because it was started otherwise:\n  {listing}\n"
            "Restore these, or start a new run with another --name"
            + (f", or go on with the change: {flags}." if changeable else ".")
        )
    return Changes(different)


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text
