"""A CPU that plays a GPU, to find where a host would wait for one.

What is copied to the device with `upload`, and everything computed from it or from the model, is
remembered as lying on the device. Reading it, asking for a shape that depends on its values, or
copying to the device in any other way is noted with its place in the code.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sa3lora.models.upload import upload

_READS = {"item", "tolist", "cpu", "numpy", "__array__", "__bool__", "__int__", "__float__",
          "__index__"}  # fmt: skip
_VALUE_DEPENDENT = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal",
                    "_unique2", "unique_dim", "bincount", "repeat_interleave"}  # fmt: skip
_FROM_NUMBERS = {"tensor", "as_tensor", "new_tensor"}


class Waits:
    """Finds waits inside `watching`.

    Attributes:
        found: What would wait, and where in the package.
    """

    def __init__(self, on_device: Iterable[Tensor]) -> None:
        self.found: list[str] = []
        self._storages: dict[int, torch.UntypedStorage] = {}
        for tensor in on_device:
            self._mark(tensor)

    @contextmanager
    def watching(self) -> Iterator[None]:
        with _Calls(self), _Operations(self):
            yield

    def _mark(self, value: object) -> None:
        for each in _tensors(value):
            storage = each.untyped_storage()
            if storage.data_ptr():
                self._storages[storage.data_ptr()] = storage  # kept, so that no address comes twice

    def _lies_there(self, value: object) -> bool:
        return any(t.untyped_storage().data_ptr() in self._storages for t in _tensors(value))

    def _note(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if "/sa3lora/" in f.filename]
        found = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].name}" if frames else "torch"
        self.found.append(f"{what} in {found}")


class _Calls(TorchFunctionMode):
    """Sees calls that never reach an operation on a CPU, such as `tolist` and `cpu`."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits, kwargs = self._waits, kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _READS and waits._lies_there(args[0]):
            waits._note(name)
        if name in _FROM_NUMBERS and (kwargs.get("device") is not None or name == "new_tensor"):
            waits._note(name)
        if name == "to" and waits._lies_there(args[0]) and "cpu" in args[1:]:
            waits._note("to")
        if name == "to" and not waits._lies_there(args[0]) and _names_device(args, kwargs):
            if not _in_upload():
                waits._note("a plain copy to the device")
            sent = func(*args, **kwargs).clone()
            waits._mark(sent)
            return sent
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    """Sees every operation, of autograd's and the optimizer's too."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits, kwargs = self._waits, kwargs or {}
        name = func.overloadpacket.__name__
        there = waits._lies_there((args, kwargs))
        if there and (name in _VALUE_DEPENDENT or (name.startswith("index") and _by_bool(args))):
            waits._note(name)
        if name == "copy_" and waits._lies_there(args[1]) and not waits._lies_there(args[0]):
            waits._note("a copy to the host")
        result = func(*args, **kwargs)
        if there:
            waits._mark(result)
        return result


def _tensors(value: object) -> list[Tensor]:
    found = [each for each in tree_iter(value) if isinstance(each, Tensor)]
    return [each for each in found if each.layout == torch.strided]


def _in_upload() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == upload.__code__.co_filename:
            return True
        frame = frame.f_back
    return False


def _names_device(args: Any, kwargs: Any) -> bool:
    return "device" in kwargs or any(isinstance(each, str | torch.device) for each in args[1:])


def _by_bool(args: Any) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(each, Tensor) and each.dtype == torch.bool for each in indices)
