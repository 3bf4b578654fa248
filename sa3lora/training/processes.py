"""The processes that train together, and the device each of them has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from sa3lora.errors import RunError, Sa3LoraError
from sa3lora.training.sharding import asks_for_sharding


class Processes(Protocol):
    """What a loop needs to know of the processes that train together."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""

    @property
    def rank(self) -> int:
        """Number of this process."""

    def average(self, tensors: list[Tensor], *, weight: float | Tensor = 1.0) -> None:
        """Replace tensors by their mean over all processes, each counting with its weight."""

    def gather(self, value: Any) -> list[Any]:
        """Collect one value of each process, by rank."""

    def wait(self) -> None:
        """Wait until all processes are here."""


class Alone:
    """A single process: nothing to average or to wait for."""

    is_main = True
    rank = 0

    def average(self, tensors: list[Tensor], *, weight: float | Tensor = 1.0) -> None:
        """Leave the tensors as they are."""

    def gather(self, value: Any) -> list[Any]:
        """Return the value in a list."""
        return [value]

    def wait(self) -> None:
        """Return at once."""


class ProcessGroup:
    """The processes of an Accelerate launch, in the words of `ResumableLoop`."""

    def __init__(self, accelerator: Accelerator) -> None:
        """Wrap an accelerator."""
        self.accelerator = accelerator
        # What is told goes from host to host: through GPUs it would wait for all of their work.
        self._hosts = torch.distributed.new_group(backend="gloo") if self.size > 1 else None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return bool(self.accelerator.is_main_process)

    @property
    def rank(self) -> int:
        """Number of this process."""
        return int(self.accelerator.process_index)

    @property
    def size(self) -> int:
        """How many processes train together."""
        return int(self.accelerator.num_processes)

    def average(self, tensors: list[Tensor], *, weight: float | Tensor = 1.0) -> None:
        """Replace gradients by their weighted mean over all processes, in one message.

        A weight that is no number makes the mean no number in every process, so that all of them
        know of a loss that went wrong in one.
        """
        if self.size == 1 or not tensors:
            return
        parts = [tensor.flatten() * weight for tensor in tensors]
        share = torch.ones_like(parts[0][:1]) * weight
        sums = self.accelerator.reduce(torch.cat([*parts, share]), reduction="sum")
        mean = sums[:-1] / sums[-1]
        for tensor, part in zip(tensors, mean.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """Collect one value of each process, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value, group=self._hosts)
        return found

    def any(self, value: bool) -> bool:
        """Tell whether it is true in any process."""
        return value if self.size == 1 else any(self.gather(value))

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.accelerator.wait_for_everyone()


def is_main_process() -> bool:
    """Tell, before any process has met another, whether this is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def on_main_process(make: Callable[[], str], *, device: str | None) -> str:
    """Do something once, in the main process, and give its result to all.

    Raises:
        Sa3LoraError: In every process, what the main process raised.
    """
    with accelerated(device) as accelerator:
        if accelerator.num_processes == 1:
            return make()
        outcome: list[str | Sa3LoraError | None] = [None]
        if accelerator.is_main_process:
            try:
                outcome = [make()]
            except Sa3LoraError as error:
                outcome = [error]
        broadcast_object_list(outcome)
        if isinstance(outcome[0], Sa3LoraError):
            raise outcome[0]
        assert outcome[0] is not None
        return outcome[0]


@contextmanager
def accelerated(device: str | None) -> Iterator[Accelerator]:
    """Give the accelerator of one run.

    Accelerate keeps its settings for the whole process. They are dropped afterwards, so that a
    second run in the same process may use another device.

    Args:
        device: `cpu`, `cuda` or `mps`; None takes the best there is.

    Raises:
        RunError: If the device is not there, or a launcher asks for what is not followed here.
    """
    _refuse_engines()
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    try:
        found = accelerator.device.type
        if device is not None and torch.device(device).type != found:
            raise RunError(f"there is no {device} here; this machine trains on {found}.")
        yield accelerator
    finally:
        if accelerator.num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)


def _refuse_engines() -> None:
    """Take no launch whose memory savings would silently not come true."""
    kinds = {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}
    for variable, name in kinds.items():
        if os.environ.get(f"ACCELERATE_USE_{variable}", "false").lower() in ("true", "1", "yes"):
            raise RunError(
                f"{name} does not train here. Launch with recipes/accelerate/multi_gpu.yaml or "
                "multi_node.yaml, where each process holds the whole frozen base, or with "
                "fsdp2.yaml, where the base is spread over them."
            )
    asks_for_sharding()
