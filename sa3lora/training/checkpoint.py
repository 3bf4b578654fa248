"""Checkpoints on disk: whole or absent, each with a manifest that proves it.

A checkpoint is a folder `step-00000200`. It is filled under another name, synced and renamed, so
a process may die at any moment without leaving half of one under its final name. What lies in it
is the caller's business; this module owns names, order, hashes and removal.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa3lora.errors import CheckpointError
from sa3lora.runs import sha256_file

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_PREFIX = "step-"
_TEMPORARY = ".writing-"
_REMOVED = ".removed-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files agree with its manifest.

    Attributes:
        folder: Where its files lie.
        step: Number of optimizer steps behind it.
        info: What the writer recorded beside the files.
    """

    folder: Path
    step: int
    info: dict[str, Any]


def write_checkpoint(
    root: Path,
    step: int,
    *,
    fill: Callable[[Path], None],
    info: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write `root/step-<step>` and remove all but the newest `keep` checkpoints.

    Args:
        root: Folder of the run's checkpoints; made when absent.
        step: Number of optimizer steps so far.
        fill: Writes the files into the folder that it is given.
        info: JSON values to find again in `Checkpoint.info`.
        keep: How many checkpoints stay, at least 1.

    Raises:
        CheckpointError: If the disk refuses; what was there before stays untouched.
    """
    root.mkdir(parents=True, exist_ok=True)
    finish_interrupted(root)
    temporary = root / f"{_TEMPORARY}{step:08d}"
    final = root / f"{_PREFIX}{step:08d}"
    try:
        temporary.mkdir()
        fill(temporary)
        _write_manifest(temporary, step, info)
        _sync_folder(temporary)
        if final.exists():
            _remove(final)
        temporary.rename(final)
        _sync_folder(root)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{final} could not be written: {error.strerror or error}. Earlier checkpoints are "
            "untouched: free some space and go on with --resume."
        ) from error
    remove_older(root, keep=keep)
    return final


def remove_older(root: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; the newest stays always."""
    for old in sorted(_folders(root))[: -max(keep, 1)]:
        _remove(old)


def newest_checkpoint(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that agrees with its manifest.

    Returns:
        The checkpoint, or None if there is none, and one sentence for each newer one that had to
        be passed over.
    """
    passed_over: list[str] = []
    for folder in sorted(_folders(root), reverse=True):
        try:
            return read_checkpoint(folder), passed_over
        except CheckpointError as error:
            passed_over.append(f"{error} Passing over it for the one before.")
            logger.warning("%s", passed_over[-1])
    return None, passed_over


def read_checkpoint(folder: Path) -> Checkpoint:
    """Check a checkpoint against its manifest.

    Raises:
        CheckpointError: If a file is missing or is not the one that was written.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, step, info = manifest["files"], int(manifest["step"]), manifest["info"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} has no readable {MANIFEST} ({error}).") from error
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing.")
        if sha256_file(path) != expected:
            raise CheckpointError(f"{path} is not what was written (its SHA-256 differs).")
    return Checkpoint(folder=folder, step=step, info=info)


def checkpoint_steps(root: Path) -> list[int]:
    """Give the steps of the checkpoints there are, whole or not, in order."""
    names = sorted(folder.name.removeprefix(_PREFIX) for folder in _folders(root))
    return [int(name) for name in names if name.isdecimal()]


def finish_interrupted(root: Path) -> None:
    """Finish what a killed process was about to do; only the process that writes may do it.

    A checkpoint that was whole already gets its name: the one that it replaces may be gone. What
    is half-written or half-removed is removed.
    """
    for path in root.glob(f"{_TEMPORARY}*"):
        final = root / path.name.replace(_TEMPORARY, _PREFIX)
        try:
            read_checkpoint(path)
        except CheckpointError:
            shutil.rmtree(path, ignore_errors=True)
            continue
        if final.exists():
            _remove(final)
        path.rename(final)
        _sync_folder(root)
    for path in root.glob(f"{_REMOVED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _folders(root: Path) -> list[Path]:
    return [path for path in root.glob(f"{_PREFIX}*") if path.is_dir()]


def _write_manifest(folder: Path, step: int, info: Mapping[str, Any]) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        _sync_file(path)
    manifest = {
        "step": step,
        "files": {path.name: sha256_file(path) for path in files},
        "info": dict(info),
    }
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _sync_file(path)


def _remove(folder: Path) -> None:
    # Renamed first: a kill in the middle must not leave a checkpoint with half of its files.
    doomed = folder.with_name(f"{_REMOVED}{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there, renames are durable by the journal
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
