"""Have glibc join what training frees on a CPU, which its caches of small pieces prevent.

Before 2.39 every aligned allocation leaves two pieces of a few bytes in a cache, where they keep
the freed tensor between them from being joined with its neighbours. No other tensor of that size
fits there any more, so the heap of a training step grows by half of what lives in it (glibc bug
30723). Without those caches it does not, and a step takes as long.

glibc reads these settings when a process starts and at no other time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

#: First version of glibc that joins such pieces.
_MENDED = (2, 39)
_WITHOUT_CACHES = {"glibc.malloc.tcache_count": "0", "glibc.malloc.mxfast": "0"}
_TRAINS = {"bench", "demo", "train", "verify-resume"}
# Where there is a GPU the tensors are not in the heap, and small pieces are wanted fast.
_GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))


def restart_to_train_in_less_memory(arguments: Sequence[str]) -> None:
    """Start this process again with those settings, if it is going to train and needs them.

    It keeps its number, its files and its command line. Settings of the user's stay as they are.
    """
    if arguments and arguments[0] in _TRAINS and _wastes() and not any(p.exists() for p in _GPUS):
        wanted = environment_without_caches(os.environ)
        if wanted != os.environ.get("GLIBC_TUNABLES"):
            os.execve(sys.executable, sys.orig_argv, {**os.environ, "GLIBC_TUNABLES": wanted})


def environment_without_caches(environment: Mapping[str, str]) -> str:
    """Give the value of `GLIBC_TUNABLES` that turns the caches off where nothing else is said."""
    said = environment.get("GLIBC_TUNABLES", "")
    names = {setting.partition("=")[0] for setting in said.split(":")}
    added = [f"{name}={value}" for name, value in _WITHOUT_CACHES.items() if name not in names]
    return ":".join([*([said] if said else []), *added])


def _wastes() -> bool:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, ValueError, OSError):  # not Linux, or another C library
        return False
    return name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) < _MENDED
