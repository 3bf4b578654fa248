"""The legacy `.ckpt` of the released trainer: opened with a guard at every step.

Unpickling can run code and ask for any amount of memory. So the archive is looked at first: a zip
of stored members, whose pickle names nothing but tensors and plain containers. Then torch reads it
with `weights_only=True`, and every tensor must own as many bytes as its shape says.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sa3lora.adapters.container import MEND, check_regular
from sa3lora.adapters.limits import MAX_ADAPTER_BYTES, MAX_HEADER_BYTES, MAX_TENSORS, is_name
from sa3lora.errors import AdapterError

_ALLOWED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch FloatStorage",
    "torch DoubleStorage",
    "torch HalfStorage",
    "torch BFloat16Storage",
}
# What torch.load raises on bytes that are no pickle depends on the bytes.
_UNPICKLING = (
    pickle.UnpicklingError, EOFError, RuntimeError, LookupError, ValueError, TypeError,
    AttributeError, AssertionError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile,
    NotImplementedError, OSError,
)  # fmt: skip


def read_pickle(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a `.ckpt`: its `lora_config` and its tensors.

    Raises:
        AdapterError: If it is anything but a checkpoint of plain tensors.
    """
    if check_regular(file) == 0:
        raise AdapterError(f"{file}: 0 bytes. {MEND}")
    try:
        refused = _refused(file)
        content = None if refused else torch.load(file, map_location="cpu", weights_only=True)
    except _UNPICKLING as error:
        # What torch says is left out: it advises to open the file without its guard.
        raise _not_plain(file, "") from error
    if refused:
        raise _not_plain(file, f" ({refused})")
    state = content.get("state_dict") if isinstance(content, dict) else None
    header = content.get("lora_config") or {} if isinstance(content, dict) else {}
    if not isinstance(state, dict) or not isinstance(header, dict):
        raise AdapterError(f"{file}: must hold a dict with state_dict and lora_config. {MEND}")
    strange = _strange(state)
    if strange:
        raise AdapterError("\n  ".join([f"{file} has {len(strange)} problems", *strange[:20]]))
    return _plain(file, header), {key: _whole(value) for key, value in state.items()}


def _not_plain(file: Path, reason: str) -> AdapterError:
    return AdapterError(
        f"{file}: not a checkpoint of plain tensors{reason}, and nothing else is opened. "
        "Name an adapter, NAME.safetensors or a .ckpt of the released tools."
    )


def _refused(file: Path) -> str | None:
    """Say what an archive holds that is not allowed, reading its pickle as data only."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > MAX_TENSORS or any(member.compress_type for member in members):
            return "not an archive of stored tensors"
        pickles = [member for member in members if member.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_HEADER_BYTES:
            return "no data.pkl of a sensible size"
        if sum(member.file_size for member in members) > MAX_ADAPTER_BYTES:
            return f"more than {MAX_ADAPTER_BYTES >> 30} GB"
        data = archive.read(pickles[0])
    for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1"):
            return f"it builds objects, {opcode.name}"
        if opcode.name == "GLOBAL" and argument not in _ALLOWED:
            return f"it names {argument}"
    return None


def _strange(state: Mapping[Any, Any]) -> list[str]:
    found = []
    for key, value in state.items():
        if not isinstance(key, str) or not is_name(key):
            found.append(f"{str(key)[:80]!r}: not a name")
        elif not isinstance(value, Tensor):
            found.append(f"{key}: not a tensor")
        elif not value.is_floating_point():
            found.append(f"{key}: must be floating point, got {value.dtype}")
        elif not _owns_its_bytes(value):
            found.append(f"{key}: {tuple(value.shape)} is more than the file holds of it")
    return found


def _owns_its_bytes(tensor: Tensor) -> bool:
    """Refuse views that repeat one number, which look as large as they like."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _whole(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous()


def _plain(file: Path, header: Mapping[Any, Any]) -> dict[str, Any]:
    """Take a Python dict as the JSON that it stands for."""
    try:
        parsed: dict[str, Any] = json.loads(json.dumps(header))
    except (TypeError, ValueError, RecursionError) as error:
        raise AdapterError(f"{file}: lora_config holds more than plain values. {MEND}") from error
    return parsed
