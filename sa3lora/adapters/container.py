"""The safetensors container: headers read without weights, bytes written always the same.

The safetensors library orders its header strings by chance, so equal adapters would give unequal
files, and it needs all tensors in memory at once. Both matter here; reading a tensor does not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from sa3lora.errors import AdapterError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library

MEND = "Copy or download it again, or name another file."


@dataclass(frozen=True)
class Entry:
    """Where and what one tensor of a file is. `start` counts from the first byte of data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """Strings and tensor table of one file; `data_start` is the offset of its first tensor."""

    metadata: dict[str, str]
    entries: dict[str, Entry]
    data_start: int


def read_header(path: Path) -> Header:
    """Read the table of a safetensors file, weights untouched.

    Raises:
        AdapterError: If the file is missing, empty, cut short or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                reason = "0 bytes" if size == 0 else "not a safetensors file, or cut short"
                raise AdapterError(f"{path}: {reason}. {MEND}")
            raw = json.loads(file.read(length))
    except FileNotFoundError:
        raise AdapterError(f"{path}: no such file. Check the path.") from None
    except (IsADirectoryError, PermissionError) as error:
        raise AdapterError(f"{path}: {error.strerror}. Name a file that can be read.") from error
    except ValueError as error:
        raise AdapterError(f"{path}: not a safetensors file ({error}). {MEND}") from error
    header = _parse(path, raw, data_start=8 + length)
    stored = max((entry.end for entry in header.entries.values()), default=0)
    if header.data_start + stored != size:
        raise AdapterError(
            f"{path}: {size} bytes, but its header describes {header.data_start + stored}: "
            f"truncated or damaged. {MEND}"
        )
    return header


def _parse(path: Path, raw: object, *, data_start: int) -> Header:
    if not isinstance(raw, dict):
        raise AdapterError(f"{path}: not a safetensors file (no table). {MEND}")
    try:
        metadata = dict(raw.pop("__metadata__", None) or {})
        entries = {
            name: Entry(item["dtype"], tuple(item["shape"]), *item["data_offsets"])
            for name, item in raw.items()
        }
        wrong = [name for name, entry in entries.items() if not _fits(entry)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{path}: not a safetensors file (malformed table). {MEND}") from error
    if wrong:
        raise AdapterError(f"{path}: shape and size disagree in {', '.join(wrong[:5])}. {MEND}")
    return Header(metadata, entries, data_start)


def _fits(entry: Entry) -> bool:
    if entry.dtype not in DTYPES:
        return entry.end >= entry.start  # reading it is refused later, by name
    return entry.end - entry.start == DTYPES[entry.dtype].itemsize * math.prod(entry.shape)


def load_tensor(file: BinaryIO, header: Header, name: str) -> Tensor:
    """Read one tensor from an open file."""
    entry = header.entries[name]
    file.seek(header.data_start + entry.start)
    data = bytearray(file.read(entry.end - entry.start))
    dtype = DTYPES[entry.dtype]
    if not data:  # frombuffer refuses empty tensors, which official checkpoints hold
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(entry.shape)


def tensor_bytes(tensor: Tensor) -> bytes:
    """Give the bytes of a tensor as a file stores them: contiguous, row-major, little-endian."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def encode_header(
    table: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """Give everything of a file before its data, tensors in the order of `table`."""
    content: dict[str, object] = {}
    if metadata:
        content["__metadata__"] = dict(sorted(metadata.items()))
    start = 0
    for name, (dtype, shape) in table.items():
        end = start + dtype.itemsize * math.prod(shape)
        content[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # data starts aligned, as the safetensors library has it
    return len(text).to_bytes(8, "little") + text


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Give a whole file: wide types first, then by name; equal input, equal bytes."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    table = {name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in order}
    parts = [encode_header(table, metadata), *(tensor_bytes(tensors[name]) for name in order)]
    return b"".join(parts)
