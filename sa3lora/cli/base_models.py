"""The model that a verb on adapters needs: the option, or what the adapter names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sa3lora.cli.output import status
from sa3lora.errors import UsageError

if TYPE_CHECKING:
    from sa3lora.adapters.files import AdapterFile
    from sa3lora.models.source import ModelSource


def find_base(model: str | None, adapter: AdapterFile, *, label: str) -> ModelSource:
    """Find the model of `--model`, else the one that the adapter was trained on.

    Raises:
        UsageError: If neither names one.
    """
    from sa3lora.adapters.compat import base_name
    from sa3lora.models.source import resolve_model

    if model is not None:
        return resolve_model(model)
    named = base_name(adapter)
    if named is None:
        raise UsageError(f"{label} does not tell its base model: pass --model")
    status(f"model: {named}, which {label} was trained on")
    return resolve_model(named)


def site_shapes_of(source: ModelSource) -> dict[str, tuple[int, int]]:
    """Give (fan_out, fan_in) of every layer of a model that can be adapted, no weights loaded."""
    import torch

    from sa3lora.adapters.sites import site_shapes
    from sa3lora.models.denoiser import Denoiser

    with torch.device("meta"):
        return site_shapes(Denoiser(source.config))


def check_fit(
    adapter: AdapterFile, source: ModelSource, *, label: str, allow_other: bool
) -> dict[str, tuple[int, int]]:
    """Refuse an adapter of another base; give the shapes of the model's layers.

    Raises:
        AdapterMismatchError: As `compat.check_base`.
    """
    from sa3lora.adapters.compat import check_base

    shapes = site_shapes_of(source)
    check_base(
        adapter, name=source.name, dit_hash=source.dit_hash, shapes=shapes, label=label,
        allow_other=allow_other,
    )  # fmt: skip
    return shapes
