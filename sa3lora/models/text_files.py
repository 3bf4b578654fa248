"""What the folder of a text encoder must hold, checked without loading its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sa3lora.errors import CheckpointError
from sa3lora.models.checkpoint import Inventory, compare_inventories, read_inventory
from sa3lora.models.config import ModelConfig
from sa3lora.models.text import UNREADABLE

#: Where a text encoder may lie beside a model, the released layout last.
TEXT_FOLDERS = ("text_encoder", "t5gemma-b-b-ul2")
_SHOWN = 5


def local_text_folder(folder: Path, config: ModelConfig) -> Path | None:
    """Find the text encoder within a model's folder: configured path, else a usual one."""
    prompt = config.prompt
    if prompt is None:
        return None
    names = ((prompt.model_path,) if prompt.model_path else ()) + TEXT_FOLDERS
    found = (folder / name for name in names if (folder / name / "config.json").is_file())
    return next(found, None)


def text_inventory(config: dict[str, Any]) -> Inventory:
    """Names and shapes of a T5Gemma encoder's tensors, from the content of its `config.json`."""
    from transformers import T5GemmaConfig, T5GemmaEncoderModel

    with torch.device("meta"):
        encoder = T5GemmaEncoderModel(T5GemmaConfig.from_dict(config))
    return {key: tuple(value.shape) for key, value in sorted(encoder.state_dict().items())}


def text_problems(folder: Path, *, width: int) -> list[str]:
    """List what is wrong with the folder of a text encoder, in one line each.

    Args:
        folder: Holds `config.json`, `model.safetensors` and the tokenizer.
        width: Channels of a token that the model was made for.
    """
    problems = []
    if not (folder / "tokenizer.json").is_file():
        problems.append(f"{folder / 'tokenizer.json'} is missing")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        expected = text_inventory(config)
        found_width = int(config["encoder"]["hidden_size"])
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return [*problems, f"{folder / 'config.json'} describes no T5Gemma encoder ({reason})"]
    if found_width != width:
        problems.append(f"{folder}: tokens are {found_width} wide, the model takes {width}")
    try:
        found = read_inventory(folder / "model.safetensors")
    except CheckpointError as error:
        return [*problems, str(error)]
    # a released folder holds the decoder too, which nothing here needs
    kept = {key: shape for key, shape in found.items() if key in expected}
    different = compare_inventories(kept, expected)
    problems += [f"{folder / 'model.safetensors'}: {line}" for line in different[:_SHOWN]]
    if len(different) > _SHOWN:
        problems.append(f"{folder}: and {len(different) - _SHOWN} more tensors")
    return problems
