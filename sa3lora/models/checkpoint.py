"""Strict reading of `model.safetensors`, and the hashes that name what is in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sa3lora.errors import CheckpointError
from sa3lora.models.config import ModelConfig

#: Prefix of each part in a full checkpoint, and what takes its place in our modules.
DENOISER_PREFIXES = {"model.": "", "conditioner.": ""}
AUTOENCODER_PREFIX = "pretransform.model."

Inventory = dict[str, tuple[int, ...]]


def denoiser_key(key: str) -> str | None:
    """Name below the adapter root of a full checkpoint's tensor, or None."""
    for prefix in DENOISER_PREFIXES:
        if key.startswith(prefix):
            return key[len(prefix) :]
    return None


def full_key(name: str) -> str:
    """Name in a full checkpoint of a tensor below the adapter root."""
    return ("conditioner." if name.startswith("conditioners.") else "model.") + name


def autoencoder_key(key: str) -> str | None:
    """Name in the autoencoder of a checkpoint's tensor, or None; the prefix may be absent."""
    if key.startswith(AUTOENCODER_PREFIX):
        return key[len(AUTOENCODER_PREFIX) :]
    return key if key.split(".")[0] in ("encoder", "decoder", "bottleneck") else None


def read_inventory(path: Path) -> Inventory:
    """Names and shapes in a safetensors file, without reading weights.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    with _open(path) as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def _open(path: Path) -> safe_open:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. A model folder holds model.safetensors.")
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Download it again.") from error


def expected_inventory(config: ModelConfig) -> Inventory:
    """Names and shapes that a checkpoint of this model has."""
    from sa3lora.models.denoiser import Denoiser
    from sa3lora.models.same import SameAutoencoder

    with torch.device("meta"):
        same = SameAutoencoder(config.same).state_dict()
        if config.dit is None:
            return {name: tuple(t.shape) for name, t in same.items()}
        denoiser = Denoiser(config).state_dict()
    full = {full_key(name): tuple(t.shape) for name, t in denoiser.items()}
    return full | {AUTOENCODER_PREFIX + name: tuple(t.shape) for name, t in same.items()}


def compare_inventories(found: Inventory, expected: Inventory) -> list[str]:
    """List every missing, unexpected and misshapen tensor."""
    problems = [f"missing {key} {list(expected[key])}" for key in expected if key not in found]
    problems += [f"unexpected {key} {list(found[key])}" for key in found if key not in expected]
    problems += [
        f"{key} is {list(found[key])}, must be {list(shape)}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    return problems


def check_inventory(path: Path, config: ModelConfig) -> None:
    """Compare a weight file with its configuration before anything is loaded.

    Raises:
        CheckpointError: Naming every tensor that is missing, unexpected or misshapen.
    """
    problems = compare_inventories(read_inventory(path), expected_inventory(config))
    if problems:
        listed = "\n  ".join(problems)
        raise CheckpointError(
            f"{path} does not fit its model_config.json, {len(problems)} tensors differ\n  {listed}"
            "\nUse both files of one model, or download it again."
        )


def read_tensors(path: Path, keys: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield (new name, tensor) for the given {key in the file: new name}."""
    with _open(path) as file:
        for key, name in keys.items():
            yield name, file.get_tensor(key)


def stream_tensors(path: Path, keys: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield what `read_tensors` does, letting go of each tensor's part of the file at once.

    An open file stays mapped into memory as far as it was read: all of it, in the end.
    """
    for key, name in keys.items():
        yield from read_tensors(path, {key: name})


def fill(
    module: nn.Module, tensors: Iterable[tuple[str, Tensor]], *, device: str, dtype: torch.dtype
) -> None:
    """Put tensors into a module that was built on the meta device; strict.

    Rotary frequencies keep float32: they are angles, and a rounded one drifts with position.
    Always copies: a tensor in a mapped file lies wherever the header ends, and matrix products
    round otherwise there, so that equal weights of two files would not give equal sound.
    """
    state = {
        name: tensor.to(
            device=device,
            dtype=torch.float32 if name.endswith("inv_freq") else dtype,
            copy=True,
        )
        for name, tensor in tensors
    }
    module.load_state_dict(state, strict=True, assign=True)


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, shapes and float32 bytes, in the order given (sort before)."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.float().contiguous().numpy().data)
    return digest.hexdigest()
