"""The safetensors container: headers checked before weights are read, files written in a stream.

The safetensors library orders its header strings by chance, so equal adapters would give unequal
files, and it needs all tensors in memory at once. Both matter here. A header is taken from nobody:
its names, types, shapes and offsets are checked before any of them decides what is read.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sa3lora.adapters.limits import MAX_HEADER_BYTES, MAX_TENSORS, is_name, is_shape
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
_CHUNK = 1 << 24

MEND = "Copy or download it again, or name another file."

Table = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


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


def check_regular(path: Path) -> int:
    """Give the size of a file, refusing what is none: a pipe would be waited for for ever.

    Raises:
        AdapterError: If the path is missing or no regular file.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise AdapterError(f"{path}: no such file. Check the path.") from None
    except OSError as error:
        raise AdapterError(f"{path}: {error.strerror}. Name a file that can be read.") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "is a folder" if stat.S_ISDIR(found.st_mode) else "is no regular file"
        raise AdapterError(f"{path}: {kind}. Name a file that can be read.")
    return found.st_size


def read_header(path: Path) -> Header:
    """Read and check the table of a safetensors file, weights untouched.

    Raises:
        AdapterError: If the file is missing, empty, cut short or no safetensors file.
    """
    size = check_regular(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                reason = "0 bytes" if size == 0 else "not a safetensors file, or cut short"
                raise AdapterError(f"{path}: {reason}. {MEND}")
            raw = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise AdapterError(f"{path}: {error.strerror}. Name a file that can be read.") from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not a safetensors file ({error}). {MEND}") from error
    header = _parse(path, raw, data_start=8 + length)
    stored = sum(entry.end - entry.start for entry in header.entries.values())
    if header.data_start + stored != size:
        raise AdapterError(
            f"{path}: {size} bytes, but its header describes {header.data_start + stored}: "
            f"truncated or damaged. {MEND}"
        )
    return header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _parse(path: Path, raw: object, *, data_start: int) -> Header:
    if not isinstance(raw, dict):
        raise AdapterError(f"{path}: not a safetensors file (no table). {MEND}")
    metadata = raw.pop("__metadata__", None) or {}
    strings = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not strings or len(raw) > MAX_TENSORS:
        reason = f"more than {MAX_TENSORS} tensors" if strings else "malformed header strings"
        raise AdapterError(f"{path}: not a safetensors file ({reason}). {MEND}")
    entries = {}
    for name, item in raw.items():
        entry = _entry(item) if is_name(name) else None
        if entry is None:
            raise AdapterError(
                f"{path}: not a safetensors file (malformed table at {name[:80]!r}). {MEND}"
            )
        entries[name] = entry
    wrong = [name for name, entry in entries.items() if not _fits(entry)]
    if wrong:
        raise AdapterError(f"{path}: shape and size disagree in {', '.join(wrong[:5])}. {MEND}")
    end = 0
    for name, entry in sorted(entries.items(), key=lambda pair: (pair[1].start, pair[1].end)):
        if entry.start != end:
            raise AdapterError(f"{path}: tensors overlap or leave a gap at {name}. {MEND}")
        end = entry.end
    return Header(metadata, entries, data_start)


def _entry(item: object) -> Entry | None:
    if not isinstance(item, dict) or item.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    well_formed = isinstance(dtype, str) and is_shape(shape) and is_shape(offsets)
    if not well_formed or len(offsets) != 2 or offsets[0] > offsets[1]:
        return None
    return Entry(dtype[:16], tuple(shape), *offsets)


def _fits(entry: Entry) -> bool:
    if entry.dtype not in DTYPES:
        return True  # reading it is refused later, by name
    return entry.end - entry.start == DTYPES[entry.dtype].itemsize * math.prod(entry.shape)


def load_tensor(file: BinaryIO, header: Header, name: str) -> Tensor:
    """Read one tensor from an open file."""
    entry = header.entries[name]
    file.seek(header.data_start + entry.start)
    data = bytearray(entry.end - entry.start)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise AdapterError(f"{name} was cut short while it was read. {MEND}")
    dtype = DTYPES[entry.dtype]
    if not data:  # frombuffer refuses empty tensors, which official checkpoints hold
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(entry.shape)


def copy_tensor(reader: BinaryIO, header: Header, name: str, *, writer: BinaryIO) -> None:
    """Copy the bytes of one tensor from file to file, whatever its type."""
    entry = header.entries[name]
    reader.seek(header.data_start + entry.start)
    left = entry.end - entry.start
    while left:
        data = reader.read(min(left, _CHUNK))
        if not data:
            raise AdapterError(f"{name} was cut short while it was read. {MEND}")
        writer.write(data)
        left -= len(data)


def tensor_bytes(tensor: Tensor) -> bytes:
    """Give the bytes of a tensor as a file stores them: contiguous, row-major, little-endian."""
    return bytes(tensor_view(tensor))


def tensor_view(tensor: Tensor) -> memoryview:
    """Give the bytes of `tensor_bytes` without a copy where the tensor lies that way already."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def encode_header(table: Table, metadata: Mapping[str, str]) -> bytes:
    """Give everything of a file before its data, tensors in the order of `table`."""
    typed = {name: (_NAMES[dtype], shape) for name, (dtype, shape) in table.items()}
    sizes = {name: dtype.itemsize * math.prod(shape) for name, (dtype, shape) in table.items()}
    return encode_named_header(typed, sizes, metadata)


def encode_named_header(
    typed: Mapping[str, tuple[str, tuple[int, ...]]],
    sizes: Mapping[str, int],
    metadata: Mapping[str, str],
) -> bytes:
    """Give a header for types by their names in files, also those that torch lacks."""
    content: dict[str, object] = {}
    if metadata:
        content["__metadata__"] = dict(sorted(metadata.items()))
    start = 0
    for name, (dtype, shape) in typed.items():
        end = start + sizes[name]
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # data starts aligned, as the safetensors library has it
    return len(text).to_bytes(8, "little") + text


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Give a whole file: wide types first, then by name; equal input, equal bytes."""
    return b"".join(_parts(tensors, metadata))


def _parts(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    table = {name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in order}
    yield encode_header(table, metadata)
    for name in order:
        yield tensor_view(tensors[name])


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write what `encode` gives, tensor by tensor, complete or not at all."""
    write_stream(path, _parts(tensors, metadata))


def write_stream(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write pieces one after another to a file that appears complete or not at all.

    Raises:
        OSError: If it cannot be written; `filename` is then set, and nothing is left behind.
    """
    with new_file(path) as file:
        for part in parts:
            file.write(part)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when the block ends well."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
