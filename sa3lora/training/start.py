"""What a run starts from: an adapter to go on with, and a frozen stack to train on top of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sa3lora.adapters.bases import check_bases
from sa3lora.adapters.compat import check_base
from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.files import AdapterFile, read_adapter
from sa3lora.adapters.find import FILE_OF_A_RUN, FOLDER_OF_A_RUN, find_adapter
from sa3lora.adapters.sites import select_sites, site_shapes
from sa3lora.adapters.stacked import Stacked
from sa3lora.adapters.weights import CheckpointWeights
from sa3lora.errors import RecipeError
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.recipe import AdapterSection

_SHOWN = 5


def read_start(section: AdapterSection, source: ModelSource) -> AdapterFile | None:
    """Read and check the adapter that a run goes on from; None where it starts anew.

    Any file or folder that `read_adapter` takes will do, and a run or checkpoint folder.

    Raises:
        RecipeError: If it has another type, rank, scale or layers than the recipe.
        AdapterMismatchError: If it belongs to another base.
    """
    if section.from_ is None:
        return None
    path = find_adapter(section.from_)
    adapter = read_adapter(path)
    _check_settings(section, adapter, path)
    with torch.device("meta"):
        shapes = site_shapes(Denoiser(source.config))
    _check_base(adapter, source, shapes, label=str(path))
    wanted = select_sites(shapes, AdapterConfig.from_section(section))
    different = sorted(set(wanted) ^ set(adapter.sites))
    if different:
        lines = [f"{s}: only in {'the recipe' if s in wanted else path}" for s in different]
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise RecipeError(
            "\n  ".join([f"adapter.from: {path} has other layers than the recipe", *lines[:_SHOWN]])
            + "".join(f"\n  {line}" for line in more)
            + "\nSet adapter.targets, adapter.include and adapter.exclude as it was trained."
        )
    return adapter


def read_stack(
    section: AdapterSection, source: ModelSource
) -> list[tuple[Stacked, AdapterFile, float]]:
    """Read and check the adapters that a run trains on top of.

    Raises:
        AdapterError: If one of them is missing or broken.
        AdapterMismatchError: If one belongs to another base.
    """
    entries = section.stack_entries()
    if not entries:
        return []
    with torch.device("meta"):
        shapes = site_shapes(Denoiser(source.config))
    found = []
    for path, strength in entries:
        file = find_adapter(path)
        adapter = read_adapter(file)
        _check_base(adapter, source, shapes, label=str(file))
        stacked = Stacked(_name_of(adapter, file), adapter.content_hash, strength)
        found.append((stacked, adapter, strength))
    return found


def start_identity(start: AdapterFile | None, stack: tuple[Stacked, ...]) -> dict[str, Any]:
    """Name both by content, so that a run goes on wherever its files lie now."""
    identity: dict[str, Any] = {"adapter.from": None if start is None else start.content_hash}
    # No stack is no entry, as in runs of before there were any.
    if stack:
        identity["adapter.stack"] = sorted(f"{one.content_hash}={one.strength!r}" for one in stack)
    return identity


def _check_settings(section: AdapterSection, adapter: AdapterFile, path: Path) -> None:
    ours = AdapterConfig.from_section(section).stored()
    found = (adapter.config.type, adapter.config.r, adapter.config.alpha)
    wanted = (ours.type, ours.r, ours.alpha)
    if found != wanted:
        raise RecipeError(
            f"adapter.from: {path} is {found[0]} with r {found[1]} and alpha {found[2]:g}, the "
            f"recipe wants {wanted[0]} with r {wanted[1]} and alpha {wanted[2]:g}. To go on with "
            f"it set adapter.type={found[0]} adapter.r={found[1]} adapter.lora_alpha={found[2]:g}; "
            "sa3lora resize gives it another rank."
        )


def _check_base(
    adapter: AdapterFile, source: ModelSource, shapes: dict[str, tuple[int, int]], *, label: str
) -> None:
    relation = check_base(
        adapter, name=source.name, dit_hash=source.dit_hash, shapes=shapes, label=label
    )
    if relation != "same":
        check_bases(adapter, CheckpointWeights(source.weights_path), label=label)


def _name_of(adapter: AdapterFile, file: Path) -> str:
    title = adapter.metadata.get("modelspec.title")
    in_a_run = file.name in (FILE_OF_A_RUN, FOLDER_OF_A_RUN)
    return title or (file.resolve().parent.name if in_a_run else file.stem)
