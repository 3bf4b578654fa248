"""Which file or folder holds the adapter that a path means. Opens nothing."""

from __future__ import annotations

import logging
from pathlib import Path

from sa3lora.errors import AdapterError

_LOGGER = logging.getLogger(__name__)

FILE_OF_A_RUN = "adapter.safetensors"
FOLDER_OF_A_RUN = "adapter"  # of types that exist as a PEFT folder only
_CHECKPOINTS = "checkpoints"
# Of a PEFT folder, or of one for each model of diffusers.
_PEFT_SETTINGS = tuple(
    f"{part}adapter_config.json" for part in ("", "transformer/", "conditioner/")
)


def is_peft_folder(path: Path) -> bool:
    """Tell whether a folder is one PEFT adapter, or one for each model of diffusers."""
    return any((path / name).is_file() for name in _PEFT_SETTINGS)


def find_adapter(path: Path) -> Path:
    """Give what `read_adapter` is to read for a path.

    A run folder stands for its adapter or, while it has none, for its newest checkpoint, which is
    logged; a checkpoint stands for the adapter in it, a PEFT folder and a file for themselves.

    Raises:
        AdapterError: If there is no such file, or a folder holds no adapter.
    """
    if path.is_dir():
        found = _in_folder(path)
        if found is None:
            raise AdapterError(f"{path} is a folder without {FILE_OF_A_RUN}. Name an adapter file.")
        return found
    if not path.is_file():
        raise AdapterError(f"{path}: no such file. Check the path.")
    return path


def _in_folder(path: Path) -> Path | None:
    if (path / FILE_OF_A_RUN).is_file():
        return path / FILE_OF_A_RUN
    for folder in (path, path / FOLDER_OF_A_RUN):
        if is_peft_folder(folder):
            return folder
    steps = [*(path / _CHECKPOINTS).glob("step-*"), *path.glob("step-*")]
    for step in sorted(steps, key=lambda step: step.name, reverse=True):
        if step.is_dir() and (found := _in_folder(step)) is not None:
            _LOGGER.warning("%s is not finished: taking its newest checkpoint, %s", path, step.name)
            return found
    return None
