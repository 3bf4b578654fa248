from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sa3lora.cli import allocator

OFF = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
# What the machine that runs the tests has is not known, so these say it has what is looked for.
SHOW = """
import os, sys
from pathlib import Path
from sa3lora.cli import allocator
allocator._GPUS = (Path({gpu!r}),)
allocator._wastes = lambda: True
assert os.environ.setdefault("NUMBER", str(os.getpid())) == str(os.getpid())
allocator.restart_to_train_in_less_memory(sys.argv[1:])
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


def shown(*arguments: str, gpu: str = "/nowhere", said: str | None = None) -> str:
    """Give the settings and the arguments that a process has in the end."""
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment |= {} if said is None else {"GLIBC_TUNABLES": said}
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(gpu=gpu), *arguments],
        capture_output=True, text=True, check=True, env=environment, timeout=60,
    )  # fmt: skip
    return done.stdout.strip()


def test_what_trains_starts_again_in_its_place_with_the_same_arguments() -> None:
    assert shown("train", "a recipe", "x=[1, 2]") == f"{OFF} ['train', 'a recipe', 'x=[1, 2]']"


def test_other_verbs_and_machines_with_a_gpu_go_on_as_they_are(tmp_path: Path) -> None:
    assert shown("prep", "train") == "None ['prep', 'train']"
    assert shown() == "None []"
    assert shown("train", gpu=str(tmp_path)) == "None ['train']"


def test_what_the_user_set_stays() -> None:
    mine = "glibc.malloc.tcache_count=3:glibc.malloc.arena_max=1"
    assert shown("bench", said=mine) == f"{mine}:glibc.malloc.mxfast=0 ['bench']"
    assert shown("bench", said=OFF) == f"{OFF} ['bench']"


@pytest.mark.parametrize(
    ("version", "wastes"),
    [
        ("glibc 2.31", True),
        ("glibc 2.38", True),
        ("glibc 2.39", False),
        ("glibc 2.40.9000", False),
        ("musl 1.2", False),
        (None, False),
    ],
)
def test_only_old_versions_of_glibc_need_it(
    version: str | None, wastes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "confstr", lambda name: version)
    assert allocator._wastes() is wastes
