"""Telling what a path is, from its name and the names of what lies in it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from sa3lora.errors import UsageError


class Kind(StrEnum):
    """What `inspect` and `validate` know."""

    ADAPTER = "adapter"
    MODEL = "model"
    DATASET = "dataset"
    RECIPE = "recipe"


def kind_of_path(path: Path) -> tuple[Kind, Path]:
    """Tell what a path is, and which file or folder to read for it.

    A run folder is its adapter if it has one, else its recipe; weights beside a
    `model_config.json` are their model folder.

    Raises:
        UsageError: If the path does not exist or is nothing known.
    """
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist. Check the path.")
    if path.name == "model.safetensors" and (path.parent / "model_config.json").is_file():
        return Kind.MODEL, path.parent
    if path.name == "model_config.json":
        return Kind.MODEL, path.parent
    if path.suffix in (".safetensors", ".ckpt"):
        return Kind.ADAPTER, path
    if path.suffix in (".yaml", ".yml"):
        return Kind.RECIPE, path
    raise UsageError(
        f"{path} is neither an adapter (.safetensors, .ckpt) nor a recipe (.yaml). "
        "Name one of these."
    )


def _kind_of_folder(path: Path) -> tuple[Kind, Path]:
    from sa3lora.adapters.find import FOLDER_OF_A_RUN, is_peft_folder

    if (path / "model_config.json").is_file() or (path / "model.safetensors").is_file():
        return Kind.MODEL, path
    if (path / "dataset.json").is_file() or any(path.glob("shard-*.arrow")):
        return Kind.DATASET, path
    if (path / "adapter.safetensors").is_file():
        return Kind.ADAPTER, path / "adapter.safetensors"
    for folder in (path, path / FOLDER_OF_A_RUN):
        if is_peft_folder(folder):
            return Kind.ADAPTER, folder
    if (path / "recipe.yaml").is_file():
        return Kind.RECIPE, path / "recipe.yaml"
    raise UsageError(
        f"{path} is neither a model folder (model_config.json), a dataset (dataset.json), a run "
        "(recipe.yaml) nor a PEFT adapter (adapter_config.json). Name one of these."
    )
