"""The strings in the header of our adapter files, beside the official `lora_config`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import sa3lora

PREFIX = "sa3lora."
MODELSPEC_VERSION = "1.0.1"  # github.com/Stability-AI/ModelSpec
ARCHITECTURE = "stable-audio-3/lora"


def build_metadata(
    *,
    base_id: str,
    dit_hash: str,
    ae_hash: str | None = None,
    dataset: str | None = None,
    recipe: str | None = None,
    step: int | None = None,
    trigger: str | None = None,
    licence: str | None = None,
    title: str | None = None,
    tags: Sequence[str] = (),
    date: dt.date | None = None,
) -> dict[str, str]:
    """Describe an adapter for its file: what it was trained on, and how others may use it.

    What is None or empty is left out.

    Args:
        base_id: Name of the base model, as `--model` takes it.
        dit_hash: Hash of the DiT and conditioners it was trained on.
        ae_hash: Hash of the autoencoder of its latents.
        dataset: Fingerprint of the dataset.
        recipe: The recipe as it ran, YAML.
        step: Optimizer steps taken.
        trigger: Words of a prompt that call the style.
        licence: Licence of the adapter.
        title: Name for people.
        tags: Words for finding it.
        date: Day of training, today by default.
    """
    ours = {
        "version": sa3lora.__version__,
        "base_id": base_id,
        "dit_hash": dit_hash,
        "ae_hash": ae_hash,
        "dataset": dataset,
        "recipe": recipe,
        "step": None if step is None else str(step),
        "trigger": trigger,
        "licence": licence,
    }
    spec = {
        "sai_model_spec": MODELSPEC_VERSION,
        "architecture": ARCHITECTURE,
        "title": title,
        "date": (date or dt.date.today()).isoformat(),
        "license": licence,
        "trigger_phrase": trigger,
        "tags": ", ".join(tags),
    }
    named = {f"{PREFIX}{key}": value for key, value in ours.items()}
    named |= {f"modelspec.{key}": value for key, value in spec.items()}
    return {key: value for key, value in named.items() if value}
