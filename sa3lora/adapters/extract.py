"""An adapter out of two full checkpoints: what the second changed of the first, at a rank."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.container import DTYPES, load_tensor
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.header import build_metadata
from sa3lora.adapters.lowrank import fill_rank, truncate_matrix
from sa3lora.adapters.merge import Lost
from sa3lora.adapters.sites import patterns_for
from sa3lora.adapters.weights import CheckpointWeights, checkpoint_key
from sa3lora.errors import AdapterError, AdapterMismatchError

_SHOWN = 8


@dataclass(frozen=True)
class Extraction:
    """What was found.

    Attributes:
        adapter: A plain `lora`.
        lost: What each of its layers leaves out.
        beyond: Tensors that differ too but that no adapter can hold, such as biases and norms.
    """

    adapter: AdapterFile
    lost: dict[str, Lost]
    beyond: list[str]


@torch.no_grad()
def extract_adapter(
    base: CheckpointWeights,
    tuned: CheckpointWeights,
    rank: int,
    *,
    sites: Sequence[str],
    base_id: str,
    dit_hash: str,
    title: str | None = None,
    date: dt.date | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Extraction:
    """Give the nearest `lora` of a rank for what a checkpoint changes of another.

    Weights pass one at a time. Layers that are equal are left out.

    Args:
        base: The checkpoint before.
        tuned: The checkpoint after.
        rank: Of the adapter.
        sites: Layers that can be adapted.
        base_id: Name of the base.
        dit_hash: Hash of its DiT and conditioners.
        title: Name of the adapter for people.
        date: Today by default.
        progress: Called with (layers done, layers).

    Raises:
        AdapterMismatchError: If they do not hold the same tensors in the same shapes.
        AdapterError: If no layer differs.
    """
    _check_same_model(base, tuned)
    tensors, lost = {}, {}
    for number, site in enumerate(sites):
        before, after = base(site).float().flatten(1), tuned(site).float().flatten(1)
        if not torch.equal(before, after):
            found = truncate_matrix(after - before, rank)
            down, up = fill_rank(found.down, found.up, rank)
            tensors[site] = {"lora_A": down, "lora_B": up}
            lost[site] = Lost(found.energy, found.lost)
        if progress is not None:
            progress(number + 1, len(sites))
    if not tensors:
        raise AdapterError(f"{tuned.path} and {base.path} have the same layers: nothing to extract")
    include, exclude = patterns_for(tensors, sites, AdapterConfig(r=rank))
    config = AdapterConfig(r=rank, lora_alpha=float(rank), include=include, exclude=exclude)
    metadata = build_metadata(base_id=base_id, dit_hash=dit_hash, title=title, date=date)
    return Extraction(AdapterFile(config, tensors, metadata), lost, _beyond(base, tuned, sites))


def _check_same_model(base: CheckpointWeights, tuned: CheckpointWeights) -> None:
    before, after = base.header.entries, tuned.header.entries
    problems = [f"{key}: only in one of them" for key in sorted(before.keys() ^ after.keys())]
    problems += [
        f"{key}: {before[key].shape} and {after[key].shape}"
        for key in sorted(before.keys() & after.keys())
        if before[key].shape != after[key].shape
    ]
    if problems:
        shown = problems[:_SHOWN]
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise AdapterMismatchError(
            "\n  ".join([f"{base.path} and {tuned.path} are not one model", *shown, *more])
        )


def _beyond(base: CheckpointWeights, tuned: CheckpointWeights, sites: Sequence[str]) -> list[str]:
    adapted = {checkpoint_key(site) for site in sites}
    return [
        key
        for key in sorted(base.header.entries)
        if key not in adapted and _differs(base, tuned, key)
    ]


def _differs(base: CheckpointWeights, tuned: CheckpointWeights, key: str) -> bool:
    if any(side.header.entries[key].dtype not in DTYPES for side in (base, tuned)):
        return base.header.entries[key].dtype != tuned.header.entries[key].dtype
    with open(base.path, "rb") as one, open(tuned.path, "rb") as other:
        before, after = load_tensor(one, base.header, key), load_tensor(other, tuned.header, key)
    return not torch.equal(before.double(), after.double())
