"""The most memory that a piece of work had in use."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from sa3lora.training.meter import peak_memory

_STATUS = Path("/proc/self/status")
_FORGET = Path("/proc/self/clear_refs")


class PeakMemory:
    """Peaks of a device, or of this process on a CPU, over what was in use at the beginning.

    Attributes:
        is_exact: Whether earlier peaks could be forgotten; where they cannot, as outside Linux,
            what is measured is an upper limit.
    """

    def __init__(self, device: torch.device) -> None:
        """Take what is in use now as the zero."""
        gc.collect()
        self._device = device
        self.is_exact = device.type == "cuda" or sys.platform == "linux"
        self._forget()
        self._before = self._peak()

    def of(self, run: Callable[[], object]) -> int:
        """Run something and give its peak in bytes."""
        self._forget()
        run()
        return max(0, self._peak() - self._before)

    def _forget(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self.is_exact:
            try:
                _FORGET.write_text("5", encoding="ascii")
            except OSError:  # a sandbox may forbid it
                self.is_exact = False

    def _peak(self) -> int:
        if self._device.type != "cuda" and self.is_exact:
            for line in _STATUS.read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return peak_memory(self._device)
