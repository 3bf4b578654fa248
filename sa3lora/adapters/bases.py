"""The singular vectors that an `-xs` adapter acts in: pinned by hash, or carried in its file.

An `-xs` file holds coordinates only. Its directions come from the weights it is loaded on: on
others its numbers mean another change. So a file says which weights it means
(`sa3lora.bases_hash`), and may bring the vectors along, which makes it good for any base of its
shape and free of the last digits of a decomposition.
"""

from __future__ import annotations

import dataclasses

from sa3lora.adapters.deltas import svd_basis
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.header import PREFIX
from sa3lora.adapters.weights import Weights, hash_weights
from sa3lora.errors import AdapterMismatchError

HASH_KEY = f"{PREFIX}bases_hash"


def is_xs(adapter: AdapterFile) -> bool:
    """Tell whether an adapter is of an `-xs` type."""
    return adapter.config.type.endswith("-xs")


def pin_bases(adapter: AdapterFile, weights: Weights, *, carry: bool) -> AdapterFile:
    """Note in an `-xs` adapter which weights its bases come from; others are returned as they are.

    Args:
        adapter: The adapter.
        weights: Weights of the model it was trained on.
        carry: Put the bases into the file as tensors `U` and `V`.
    """
    if not is_xs(adapter):
        return adapter
    tensors = {site: dict(group) for site, group in adapter.tensors.items()}
    for site, group in tensors.items() if carry else ():
        if "U" not in group:
            left, right = svd_basis(weights(site), adapter.rank(site))
            group["U"], group["V"] = left.contiguous(), right.contiguous()
    metadata = dict(adapter.metadata)
    if HASH_KEY not in metadata:
        metadata[HASH_KEY] = hash_weights(adapter.sites, weights)
    return dataclasses.replace(adapter, tensors=tensors, metadata=metadata)


def check_bases(adapter: AdapterFile, weights: Weights, *, label: str) -> None:
    """Refuse an `-xs` adapter whose bases are others than those of these weights.

    Raises:
        AdapterMismatchError: If it pins other bases and does not carry them.
    """
    pinned = adapter.metadata.get(HASH_KEY)
    if not is_xs(adapter) or pinned is None or adapter.has_bases:
        return
    if hash_weights(adapter.sites, weights) != pinned:
        raise AdapterMismatchError(
            f"{label} is {adapter.config.type} and was made for other weights (its bases_hash "
            "differs), so its numbers would act in other directions. Load the model it was made "
            "for, or write there a file that carries them: sa3lora convert --with-bases."
        )
