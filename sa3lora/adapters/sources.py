"""Where the tensors of an adapter come from, whatever the format, before any is read.

Every reader of a format gives an `AdapterSource`: what the header says, and the shapes of all
tensors under the official keys. They are checked first; only then `load` touches the weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sa3lora.adapters.container import DTYPES, Header, check_regular, load_tensor, read_header
from sa3lora.adapters.limits import MAX_ADAPTER_BYTES, MAX_JSON_BYTES
from sa3lora.errors import AdapterError

CONFIG_KEY = "lora_config"
FLOATS = ("F16", "BF16", "F32", "F64")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Origin:
    """One stored tensor: where it lies, and what makes it ours.

    Attributes:
        key: Name in its file.
        shape: Shape that it is to have; a kernel is flattened into the inputs.
        order: New order of equal parts of its rows.
        factor: What it is multiplied with, in float64.
    """

    key: str
    shape: Shape
    order: tuple[int, ...] | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class AdapterSource:
    """An adapter that has been looked at but not read.

    Attributes:
        header: The `lora_config` it has or amounts to.
        metadata: Its other strings.
        shapes: Shape of every tensor by official key.
        load: Reads the tensors, by official key.
        dtypes: Type of every tensor by its name in safetensors; empty where torch knows it.
        notes: What a reader must be told about how it was understood.
        problems: What is wrong before any key is looked at.
    """

    header: Mapping[str, Any]
    metadata: Mapping[str, str]
    shapes: Mapping[str, Shape]
    load: Callable[[], dict[str, Tensor]]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    problems: Sequence[str] = ()


def open_table(file: Path) -> tuple[dict[str, Any], dict[str, str], Header]:
    """Read a safetensors header: its `lora_config`, its other strings, its table.

    Raises:
        AdapterError: If the file is broken or larger than any adapter.
    """
    table = read_header(file)
    if file.stat().st_size > MAX_ADAPTER_BYTES:
        raise AdapterError(
            f"{file}: {file.stat().st_size} bytes, an adapter has at most "
            f"{MAX_ADAPTER_BYTES >> 30} GB. Name an adapter, not a model."
        )
    text = table.metadata.get(CONFIG_KEY, "{}")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{file}: header string {CONFIG_KEY} is not JSON ({error})") from error
    if not isinstance(header, dict):
        shown = text if len(text) <= 80 else f"{text[:80]}…"
        raise AdapterError(f"{file}: header string {CONFIG_KEY} must be a JSON object, got {shown}")
    return header, {k: v for k, v in table.metadata.items() if k != CONFIG_KEY}, table


def read_json(file: Path) -> dict[str, Any]:
    """Read a small JSON object.

    Raises:
        AdapterError: If it is missing, too large, or something else.
    """
    if check_regular(file) > MAX_JSON_BYTES:
        raise AdapterError(f"{file}: larger than {MAX_JSON_BYTES >> 20} MB. Name another folder.")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{file}: not JSON ({error}). Copy or download it again.") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{file}: must be a JSON object. Copy or download it again.")
    return content


def load_origins(file: Path, table: Header, origins: Mapping[str, Origin]) -> dict[str, Tensor]:
    """Read tensors under their official keys, turned into ours."""
    from sa3lora.adapters.names import reorder_rows

    found = {}
    with open(file, "rb") as stream:
        for key, origin in origins.items():
            tensor = load_tensor(stream, table, origin.key).reshape(origin.shape)
            if origin.factor != 1.0:
                tensor = (tensor.double() * origin.factor).float()
            found[key] = reorder_rows(tensor, origin.order)
    return found


def read_scalar(file: Path, table: Header, key: str) -> float | None:
    """Read a tensor of one number; None if it is none."""
    entry = table.entries[key]
    if entry.dtype not in DTYPES or entry.shape not in ((), (1,)):
        return None
    with open(file, "rb") as stream:
        return float(load_tensor(stream, table, key).to(torch.float64).reshape(()))


def common_alpha(alphas: Mapping[str, float], *, r: int) -> tuple[float, dict[str, float]]:
    """Find the one alpha of a file from the alpha of each site, and what is left as factors.

    Args:
        alphas: Scale times rank of every site.
        r: Rank of the file, which is its alpha where sites differ.

    Returns:
        The alpha, and the factor of each site's `lora_B`; 1 everywhere if all agree.
    """
    values = set(alphas.values())
    if len(values) == 1:
        return values.pop(), dict.fromkeys(alphas, 1.0)
    return float(r), {site: alpha / r for site, alpha in alphas.items()}
