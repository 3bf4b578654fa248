"""Base weights by site, read from a checkpoint one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from torch import Tensor

from sa3lora.adapters.container import DTYPES, load_tensor, read_header, tensor_view
from sa3lora.errors import AdapterMismatchError, ModelError


class Weights(Protocol):
    """Something that gives the base weight of a site."""

    def __call__(self, site: str, /) -> Tensor:
        """Give the weight, in the type and shape it is stored in."""
        ...


def checkpoint_key(site: str) -> str:
    """Give the key of a site's weight in a full checkpoint."""
    prefix = "conditioner." if site.startswith("conditioners.") else "model."
    return f"{prefix}{site}.weight"


class CheckpointWeights:
    """The weights of a full checkpoint; memory stays at the one asked for.

    Args:
        path: Its `model.safetensors`.
    """

    def __init__(self, path: Path) -> None:
        """Read the table only."""
        self.path = path
        self.header = read_header(path)

    def __call__(self, site: str, /) -> Tensor:
        """Read one weight.

        Raises:
            AdapterMismatchError: If the checkpoint lacks the site.
            ModelError: If it is stored in a type that cannot be computed with.
        """
        key = checkpoint_key(site)
        if key not in self.header.entries:
            raise AdapterMismatchError(
                f"{self.path} has no layer {site}. Name the model that the adapter belongs to."
            )
        if self.header.entries[key].dtype not in DTYPES:
            raise ModelError(f"{key} is stored as {self.header.entries[key].dtype}, not as numbers")
        with open(self.path, "rb") as file:
            return load_tensor(file, self.header, key)

    def shape(self, site: str) -> tuple[int, ...]:
        """Give the shape of a weight without reading it; empty if there is none."""
        entry = self.header.entries.get(checkpoint_key(site))
        return () if entry is None else entry.shape


def kernels_of(sites: Iterable[str], weights: CheckpointWeights) -> dict[str, tuple[int, ...]]:
    """Give the shape of one output's weight for the sites that are convolutions."""
    shapes = {site: weights.shape(site) for site in sites}
    return {site: shape[1:] for site, shape in shapes.items() if len(shape) > 2}


def hash_weights(sites: Iterable[str], weights: Weights) -> str:
    """SHA-256 over names, shapes and float32 bytes of the weights of some sites."""
    digest = hashlib.sha256()
    for site in sorted(sites):
        weight = weights(site).float()
        digest.update(f"{site}{list(weight.shape)}".encode())
        digest.update(tensor_view(weight))
    return digest.hexdigest()
