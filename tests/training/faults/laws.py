"""What must hold after every fault: whole checkpoints, and the same adapter after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from sa3lora.adapters.files import read_adapter
from sa3lora.training.checkpoint import newest_checkpoint, read_checkpoint


class Train(Protocol):
    """Train in forked processes and tell how each ended."""

    def __call__(self, run: Path, **request: Any) -> dict[str, Any]:
        """Send one request to the server."""
        ...


def same_adapter(first: Path, second: Path) -> bool:
    """Tell whether two runs ended in the same adapter, bit for bit."""
    one, two = (read_adapter(run / "adapter.safetensors").tensors for run in (first, second))
    pairs = [(one[site][name], two[site][name]) for site in one for name in one[site]]
    return one.keys() == two.keys() and all(torch.equal(a, b) for a, b in pairs)


def whole_checkpoints(run: Path) -> list[int]:
    """Read every checkpoint under a final name; one that is not whole is an error."""
    folders = sorted((run / "checkpoints").glob("step-*"))
    return [read_checkpoint(folder).step for folder in folders]


def newest_step(run: Path) -> int:
    """Step of the newest whole checkpoint, 0 if there is none."""
    found, _ = newest_checkpoint(run / "checkpoints")
    return 0 if found is None else found.step


def require_recovery(train: Train, run: Path, whole: Path, **request: Any) -> None:
    """Resume a run that met a fault and compare its adapter with that of a run that met none."""
    answer = train(run, resume=True, **request)
    assert set(answer["codes"]) == {0}, answer
    assert same_adapter(run, whole)
    assert whole_checkpoints(run) == whole_checkpoints(whole)
