"""Options that several verbs share, and what they mean."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from sa3lora.errors import UsageError

if TYPE_CHECKING:
    import torch


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cuda = "cuda"
    mps = "mps"
    cpu = "cpu"


class Dtype(StrEnum):
    """Precision of the model's weights."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


DeviceOption = Annotated[
    Device, typer.Option("--device", help="Where to compute; auto takes the best there is.")
]
DtypeOption = Annotated[
    Dtype,
    typer.Option("--dtype", help="Precision of the weights; auto: float16 on CUDA, else float32."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Registry name, local folder or Hub id; see `sa3lora models list`.",
    ),
]


def resolve_device(device: str) -> str:
    """Choose the device, or check the one that was asked for.

    Args:
        device: auto, cuda, mps or cpu.

    Returns:
        cuda, mps or cpu.

    Raises:
        UsageError: If this machine lacks it.
    """
    import torch

    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, usable in there.items() if usable)
    if not there.get(device, False):
        usable = ", ".join(name for name, ok in there.items() if ok)
        raise UsageError(f"--device {device}: this torch cannot use it here. It can use {usable}.")
    return str(device)


def resolve_dtype(dtype: str, *, device: str) -> torch.dtype:
    """Choose the precision of weights for inference.

    Args:
        dtype: auto, float32, float16 or bfloat16.
        device: What `resolve_device` gave.

    Returns:
        The type; auto means float16 on CUDA and float32 elsewhere.
    """
    import torch

    if dtype == "auto":
        return torch.float16 if device == "cuda" else torch.float32
    return {
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
    }[str(dtype)]
