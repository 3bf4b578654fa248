"""Settings and final scores of a run as TensorBoard's HPARAMS tab compares them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import plugin_data_pb2, summary_v2
from torch.utils.tensorboard.summary import hparams

from sa3lora.recipe import Recipe
from sa3lora.training.validation import Validation

Setting = bool | str | float

# What people vary between runs comes first; columns keep this order.
_FIRST = ("adapter", "optim", "train", "data", "objective", "validate")
_LEFT_OUT = ("preview", "checkpoint")  # sections without influence on the adapter

# The tab shows five settings at first, by name, those before others that are said to differ.
_SHOWN = ("adapter.r", "adapter.type", "data.root", "optim.lr", "train.max_steps")

# Tags of final scores and their columns' names; the tab shows the first five of all at first.
SCORES = {
    "score/held_out_difference": "held-out loss, adapter - base",
    "score/gap": "gap to training tracks",
    "score/adapter_step": "step of the adapter",
    "score/overfits_since": "overfits since step (0: never)",
    "score/drift": "drift on neutral prompts",
    "score/held_out_loss": "held-out loss",
    "score/training_difference": "training loss, adapter - base",
}
# Written by `evaluate` into the folder `evaluation` of a run, also long after it has ended. Not among
# the first five: the view of parallel axes drops every run that lacks one that is shown.
EVALUATION_SCORES = {"score/fad": "FAD", "score/clap": "CLAP score", "score/kad": "KAD"}
_NUM_BEFORE_EVALUATION = 5


def flat_settings(recipe: Recipe) -> dict[str, Setting]:
    """Give the keys of a recipe that shape the adapter, as values that the tab can show."""
    dumped = recipe.model_dump(mode="json", by_alias=True)
    order = [*(name for name in _FIRST if name in dumped), *(n for n in dumped if n not in _FIRST)]
    flat: dict[str, Setting] = {}
    for section in order:
        content = dumped[section]
        if section in _LEFT_OUT:
            continue
        entries = content.items() if isinstance(content, dict) else [("", content)]
        for key, value in entries:
            name = f"{section}.{key}".rstrip(".")
            plain = isinstance(value, bool | int | float)
            flat[name] = value if plain else "" if value is None else str(value)
    return flat


def final_scores(
    manifest: Mapping[str, Any], validation: Validation | None, *, step: int
) -> dict[str, float]:
    """Collect the scores of the adapter that was written, by tag.

    Args:
        manifest: The run's manifest, with what was found at each validation.
        validation: Paired losses of the adapter, None without validation.
        step: The step that the adapter is of.
    """
    found: dict[str, float | None] = {"score/adapter_step": float(step)}
    if validation is not None:
        training = validation.results.get("train")
        held_out = validation.results.get("validation")
        if training is not None:
            found["score/training_difference"] = training.difference
        if held_out is not None:
            found["score/held_out_difference"] = held_out.difference
            found["score/held_out_loss"] = held_out.adapter
            found["score/overfits_since"] = float(manifest["overfits_since"] or 0)
    for entry in manifest["validation"]:
        if entry["step"] == step:
            found["score/gap"] = entry.get("gap", {}).get("value")
            found["score/drift"] = entry.get("drift")
    return {tag: value for tag, value in found.items() if value is not None}


def hparams_summaries(settings: Mapping[str, Setting], *, run: str) -> list[Summary]:
    """Give what to write once beside the scores themselves.

    Args:
        settings: From `flat_settings`.
        run: Name of the run: two runs of one recipe stay two rows.
    """
    metrics = [summary_v2.Metric(tag, display_name=name) for tag, name in SCORES.items()]
    metrics[_NUM_BEFORE_EVALUATION:_NUM_BEFORE_EVALUATION] = [
        summary_v2.Metric(tag, group="evaluation", display_name=name)
        for tag, name in EVALUATION_SCORES.items()
    ]
    columns = summary_v2.hparams_config_pb([summary_v2.HParam(name) for name in settings], metrics)
    _put_first(columns, _SHOWN)
    # The packaged function for the end of a session needs tensorflow; torch has its own.
    *_, end = hparams({}, {})  # type: ignore[no-untyped-call]
    return [
        columns,
        summary_v2.hparams_pb(dict(settings), trial_id=run),
        end,
    ]


def _put_first(columns: Summary, names: Collection[str]) -> None:
    plugin = columns.value[0].metadata.plugin_data
    data = plugin_data_pb2.HParamsPluginData.FromString(plugin.content)
    for info in data.experiment.hparam_infos:
        info.differs = info.name in names
    plugin.content = data.SerializeToString()
