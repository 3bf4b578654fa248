"""Say what is wrong with a recipe, in the words of its keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

# What the same thing is called elsewhere.
_OTHER_NAMES = {
    "rank": "adapter.r",
    "lora_rank": "adapter.r",
    "lora_r": "adapter.r",
    "alpha": "adapter.lora_alpha",
    "dropout": "adapter.lora_dropout",
    "target_modules": "adapter.targets",
    "adapter_type": "adapter.type",
    "learning_rate": "optim.lr",
    "optimizer": "optim.name",
    "scheduler": "optim.schedule",
    "lr_scheduler": "optim.schedule",
    "grad_clip": "optim.max_grad_norm",
    "gradient_clip_val": "optim.max_grad_norm",
    "steps": "train.max_steps",
    "num_steps": "train.max_steps",
    "precision": "train.dtype",
    "gradient_accumulation_steps": "train.grad_accum",
    "gradient_checkpointing": "train.checkpointing",
    "base_precision": "train.base_dtype",
    "batch_size": "data.frames_per_batch",
    "dataset": "data.root",
    "data_dir": "data.root",
    "snr_gamma": "objective.min_snr_gamma",
    "prior_loss_weight": "objective.prior_weight",
    "cfg_dropout_prob": "objective.prompt_dropout",
    "checkpoint_every": "checkpoint.every",
    "demo_every": "preview.every",
}


def key_paths(schema: type[BaseModel], *, prefix: str = "") -> list[str]:
    """List every key of a schema as it is written, such as `adapter.r`.

    Args:
        schema: The model.
        prefix: What to put before each key.

    Returns:
        Keys of sections and their contents, in order.
    """
    found = []
    for name, field in schema.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        found.append(path)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += key_paths(inner, prefix=f"{path}.")
    return found


def suggest(unknown: str, known: Sequence[str]) -> str | None:
    """Guess which key was meant.

    Args:
        unknown: The key as written, such as `adapter.lora_rank`.
        known: All keys there are.

    Returns:
        One of `known`, or None.
    """
    section, _, leaf = unknown.rpartition(".")
    if _OTHER_NAMES.get(leaf) in known:
        return _OTHER_NAMES[leaf]
    elsewhere = [key for key in known if key.rpartition(".")[2] == leaf]
    if len(elsewhere) == 1:
        return elsewhere[0]
    beside = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    for candidates in (beside, {key.rpartition(".")[2]: key for key in known}):
        if close := difflib.get_close_matches(leaf, candidates, n=1, cutoff=0.7):
            return candidates[close[0]]
    return None


def describe(error: ValidationError, *, known: Sequence[str]) -> list[str]:
    """Turn what pydantic found into one line a problem.

    Args:
        error: All problems of one recipe.
        known: All keys there are, for suggestions.

    Returns:
        Lines such as `train.max_steps: must be at least 1, got 0`.
    """
    lines: dict[str, str] = {}
    for problem in error.errors():
        key = _key(problem["loc"])
        # A value that fits no member of a union is reported once for each.
        lines.setdefault(key, f"{key}: {_reason(problem, key, known=known)}")
    return list(lines.values())


def _key(location: Iterable[int | str]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif "[" not in part and part not in ("bool",):  # names of union members, not keys
            text += f".{part}" if text else part
    return text


def _reason(problem: Any, key: str, *, known: Sequence[str]) -> str:
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        meant = suggest(key, known)
        return "unknown key" + (f", did you mean {meant}?" if meant else "")
    if kind == "value_error":
        return str(context["error"])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a section of keys, got {value!r}"
    limits = {
        "greater_than_equal": ("at least", "ge"),
        "greater_than": ("more than", "gt"),
        "less_than_equal": ("at most", "le"),
        "less_than": ("less than", "lt"),
    }
    if kind in limits:
        words, name = limits[kind]
        return f"must be {words} {context[name]:g}, got {value!r}"
    wanted = {
        "literal_error": f"one of {str(context.get('expected', '')).replace(' or ', ', ')}",
        "int_type": "a whole number",
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "float_parsing": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "bool_parsing": "true or false",
        "string_type": "text",
        "path_type": "a path",
        "list_type": "a list",
        "tuple_type": "a list",
    }
    if kind in wanted:
        return f"must be {wanted[kind]}, got {value!r}"
    return f"{problem['msg'][0].lower()}{problem['msg'][1:]}, got {value!r}"
