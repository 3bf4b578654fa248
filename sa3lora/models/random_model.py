"""Folders in the official layout with random weights, for trying full size without a download.

Every path is alive: what training starts at zero has small values here, so that a test on such a
model notices a branch that is left out. Residual branches are scaled so that outputs stay near
unit size at any depth. The autoencoder depends on the size and the seed alone, as the released
models of one size share theirs.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sa3lora.errors import ModelError
from sa3lora.models.checkpoint import Inventory, autoencoder_key, expected_inventory, fill
from sa3lora.models.config import ModelConfig
from sa3lora.models.config_parse import parse_config
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.fixtures import TEXT_FOLDER, released_config, text_config
from sa3lora.models.hub import free_bytes
from sa3lora.models.layers import inverse_frequencies
from sa3lora.models.quantised import QuantKind, quantising
from sa3lora.models.registry import TINY_FOLDER, base_name
from sa3lora.models.text_files import text_inventory

Progress = Callable[[int, int], None]

# share of the variance-preserving size, for the last layer of what is added to a stream
_BRANCH = 0.2
_BRANCHES = (
    "to_out.weight", "ff.ff.2.weight", "to_local_embed.2.weight", "global_cond_embedder.2.weight",
    "preprocess_conv.weight", "postprocess_conv.weight",
)  # fmt: skip
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_CARD = """# {name}, random weights

The layout of `{name}` with random numbers in it (seed {seed}): it makes noise, not music. For
trying the workbench at full size, its memory and its speed. Written by
`sa3lora models random {name} --seed {seed}`. The text encoder has the tokenizer of the embedded
model.
"""


@dataclass(frozen=True)
class RandomModel:
    """What was written."""

    folder: Path
    num_tensors: int
    num_elements: int
    num_bytes: int


def write_random_model(
    name: str, out: Path, *, seed: int, progress: Progress | None = None
) -> RandomModel:
    """Write a folder with the layout of a registry name; it appears complete or not at all.

    Memory stays at one tensor. The same name and seed give the same files.

    Args:
        name: Registry name.
        out: Folder that does not exist, or is empty.
        seed: 0 or above.
        progress: Called with (bytes written, bytes in all) of the weights.

    Raises:
        ModelError: If the name is unknown, `out` is taken, or the disk has no room.
    """
    raw = released_config(name)
    config = parse_config(raw)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists and is not empty. Name a folder that does not exist yet.")
    inventory = expected_inventory(config)
    size = 4 * sum(math.prod(shape) for shape in inventory.values())
    needed = size + _text_bytes(name)
    if needed > free_bytes(out):
        raise ModelError(
            f"{out} needs {needed / 1e6:.0f} MB, its disk has {free_bytes(out) / 1e6:.0f} MB free. "
            "Free some space, or write to another disk."
        )
    tensors = _model_tensors(inventory, name, seed=seed)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        write_safetensors(
            temporary / "model.safetensors", tensors, shapes=inventory, dtype=torch.float32,
            progress=progress,
        )  # fmt: skip
        (temporary / "model_config.json").write_text(json.dumps(raw, indent=1), encoding="utf-8")
        if config.prompt is not None:
            _write_text_encoder(name, temporary, seed=seed)
        card = _CARD.format(name=name, seed=seed)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        if out.exists():
            out.rmdir()
        os.replace(temporary, out)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return RandomModel(out, len(inventory), size // 4, size)


def random_tensor(key: str, shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
    """Draw one tensor of a checkpoint, float32, at the size that its place asks for."""
    last = key.rsplit(".", 1)[-1]
    if last == "inv_freq":
        return inverse_frequencies(4 * shape[0])
    if last == "running_std":
        return torch.ones(shape)
    noise = torch.randn(shape, generator=generator)
    if last in ("gamma", "scaling_factor", "alpha", "weight_g"):
        # the decoder's own scale keeps most of the sound within full scale
        return (0.3 if key.endswith("decoder.layers.3.mapping.weight_g") else 1) + 0.02 * noise
    if last in ("beta", "bias", "padding_embedding"):
        return 0.02 * noise
    if last in ("memory_tokens", "noise_scaling_factor"):
        return noise
    if last == "new_tokens":
        return 0.5 * noise
    if last == "to_scale_shift_gate":
        return noise / math.sqrt(shape[0] / 6)
    fan_in = math.prod(shape[1:])
    share = _BRANCH if key.endswith(_BRANCHES) else 1.0
    return noise.mul_(share / math.sqrt(fan_in))


def _model_tensors(inventory: Inventory, name: str, *, seed: int) -> Iterator[tuple[str, Tensor]]:
    same = {"small-music": "same-s", "small-sfx": "same-s", "medium": "same-l"}
    family = base_name(name)
    for key, shape in inventory.items():
        own = autoencoder_key(key)
        label = f"{name}/{key}" if own is None else f"{same.get(family, family)}/{own}"
        yield key, random_tensor(key, shape, generator=_generator(seed, label))


def _generator(seed: int, label: str) -> torch.Generator:
    """Give each tensor a stream of its own, so that no other tensor decides its values."""
    digest = hashlib.sha256(f"{seed}/{label}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def write_safetensors(
    path: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    shapes: Inventory,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> None:
    """Write tensors one by one, in the order of `shapes`, holding one at a time."""
    width = dtype.itemsize
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + width * math.prod(shape)
        header[key] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    done = 0
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (key, tensor), (expected, shape) in zip(tensors, shapes.items(), strict=True):
            assert (key, tuple(tensor.shape)) == (expected, shape), f"{key} is not {expected}"
            file.write(tensor.to(dtype).contiguous().view(-1).view(torch.uint8).numpy().data)
            done += width * tensor.numel()
            if progress is not None:
                progress(done, end)
        file.flush()
        os.fsync(file.fileno())


def _text_config(name: str) -> dict[str, Any] | None:
    """Geometry of a model's text encoder around the embedded model's tokenizer; None: it has none.

    Raises:
        ModelError: If this installation lacks that tokenizer.
    """
    from tokenizers import Tokenizer

    tokenizer = TINY_FOLDER / "text_encoder" / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelError(f"this installation lacks {tokenizer}")
    return text_config(name, vocab_size=Tokenizer.from_file(str(tokenizer)).get_vocab_size())


def _text_dtype(config: dict[str, Any]) -> torch.dtype:
    return torch.bfloat16 if config.get("dtype") == "bfloat16" else torch.float32


def _text_bytes(name: str) -> int:
    config = _text_config(name)
    if config is None:
        return 0
    count = sum(math.prod(shape) for shape in text_inventory(config).values())
    return count * _text_dtype(config).itemsize


def _write_text_encoder(name: str, folder: Path, *, seed: int) -> None:
    """Write a T5Gemma encoder in its real geometry with the embedded model's tokenizer."""
    config = _text_config(name)
    assert config is not None
    tokenizer = TINY_FOLDER / "text_encoder"
    target = folder / ("text_encoder" if name == "tiny" else TEXT_FOLDER)
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    for file in _TOKENIZER:
        shutil.copyfile(tokenizer / file, target / file)
    shapes = text_inventory(config)
    tensors = (
        (key, _text_tensor(key, shape, seed=seed, name=name)) for key, shape in shapes.items()
    )
    dtype = _text_dtype(config)
    write_safetensors(target / "model.safetensors", tensors, shapes=shapes, dtype=dtype)


def _text_tensor(key: str, shape: tuple[int, ...], *, seed: int, name: str) -> Tensor:
    noise = torch.randn(shape, generator=_generator(seed, f"{base_name(name)}/text/{key}"))
    if len(shape) == 1:  # norms multiply by 1 + weight
        return 0.02 * noise
    # embeddings are multiplied by the root of the width, like rows of a matrix
    return noise / math.sqrt(shape[1])


def random_denoiser(
    config: ModelConfig,
    *,
    seed: int,
    dtype: torch.dtype,
    device: str = "cpu",
    quantised: QuantKind | None = None,
) -> Denoiser:
    """Build transformer and conditioners with random weights, frozen; nothing is written.

    Type, place and bits are as `ModelSource.load_denoiser` takes them.
    """
    with torch.device("meta"):
        denoiser = Denoiser(config)
    shapes = {key: tuple(value.shape) for key, value in denoiser.state_dict().items()}
    tensors: Iterator[tuple[str, Tensor]] = (
        (key, random_tensor(key, shape, generator=_generator(seed, key)))
        for key, shape in shapes.items()
    )
    if quantised is not None:
        tensors = quantising(denoiser, tensors, kind=quantised, device=device, dtype=dtype)
    fill(denoiser, tensors, device=device, dtype=dtype)
    return denoiser.eval().requires_grad_(False)
