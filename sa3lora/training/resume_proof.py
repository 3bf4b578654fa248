"""Proof on the user's own machine that a killed and resumed run equals an uninterrupted one.

Real commands in processes of their own: one run to the end, one that is killed with SIGKILL and
resumed. Their last checkpoints are then compared tensor by tensor.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sa3lora.errors import RunError, UsageError
from sa3lora.latents.schema import TEXT_FOLDER
from sa3lora.recipe import Recipe
from sa3lora.training.checkpoint import newest_checkpoint

_TUPLES = 4
_LAST_LINES = 12
_SHOWN = 5


@dataclass(frozen=True)
class ResumeProof:
    """What came of a resumed run beside an uninterrupted one.

    Attributes:
        steps: Length of both runs.
        killed_at: The second was killed when this step was done.
        resumed_from: Step of the checkpoint that it went on from, 0 for none.
        adapters: SHA-256 over the tensors of both adapters.
        states: The same of everything that the optimizer keeps.
        differences: What is not the same, a sentence each.
    """

    steps: int
    killed_at: int
    resumed_from: int
    adapters: tuple[str, str]
    states: tuple[str, str]
    differences: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether not a bit differs."""
        return not self.differences


def verify_resume(
    recipe: Recipe,
    *,
    model: str,
    steps: int,
    kill_at: int,
    device: str,
    tell: Callable[[str], None],
) -> ResumeProof:
    """Train a few steps, train them again with a kill between, and compare.

    Everything is written to a temporary folder that is gone afterwards, text embeddings included.

    Args:
        recipe: The run to try; its length, and how often it saves, validates and makes previews,
            are replaced.
        model: Name or folder of its model.
        steps: How many steps to train.
        kill_at: The step after which to kill, before the last.
        device: `cpu`, `cuda` or `mps`.
        tell: Told what is going on, a sentence at a time.

    Raises:
        UsageError: If `kill_at` does not lie before the last step.
        RunError: If one of the runs fails.
    """
    if not 1 <= kill_at < steps:
        raise UsageError(
            f"--kill-at must lie from 1 to {steps - 1}, before the last of --steps {steps} steps, "
            f"got {kill_at}"
        )
    with tempfile.TemporaryDirectory(prefix="sa3lora-verify-resume-") as name:
        folder = Path(name)
        path = folder / "recipe.yaml"
        short = _short_recipe(recipe, folder, model=model, steps=steps, kill_at=kill_at)
        path.write_text(short.to_yaml(), encoding="utf-8")
        tell(f"training {steps} steps without interruption")
        _train(folder, "whole", device=device)
        tell(f"training again, to be killed after step {kill_at}")
        _train(folder, "killed", device=device, kill_at=kill_at)
        found, _ = newest_checkpoint(folder / "runs" / "killed" / "checkpoints")
        resumed_from = 0 if found is None else found.step
        tell(f"going on after step {resumed_from}")
        _train(folder, "killed", device=device, resume=True)
        last = Path("checkpoints") / f"step-{steps:08d}"
        return _compare(
            *(folder / "runs" / run / last for run in ("whole", "killed")),
            steps=steps,
            killed_at=kill_at,
            resumed_from=resumed_from,
        )


def _short_recipe(recipe: Recipe, folder: Path, *, model: str, steps: int, kill_at: int) -> Recipe:
    """Shorten a recipe and make its paths independent of the folder it runs in."""
    values = recipe.model_dump(mode="json", by_alias=True)
    values["model"] = str(Path(model).resolve()) if Path(model).is_dir() else model
    if recipe.data.root is not None and recipe.data.root.is_dir():
        values["data"]["root"] = str(_linked_dataset(recipe.data.root, folder))
    if recipe.adapter.from_ is not None:
        values["adapter"]["from"] = str(recipe.adapter.from_.resolve())
    values["train"]["max_steps"] = steps
    # The last checkpoint is older than the kill wherever that is possible, so steps are retaken.
    values["checkpoint"] |= {"every": max(1, kill_at - 1), "keep": 2}
    values["validate"] |= {"every": kill_at, "tuples": min(_TUPLES, recipe.validation.tuples)}
    values["preview"]["every"] = 0
    return Recipe.model_validate(values)


def _linked_dataset(root: Path, folder: Path) -> Path:
    """Show a dataset in another folder, so that new text embeddings are not written beside it."""
    copy = folder / "data" / root.resolve().name
    (copy / TEXT_FOLDER).mkdir(parents=True)
    entries = [path for path in root.resolve().iterdir() if path.name != TEXT_FOLDER]
    texts = root.resolve() / TEXT_FOLDER
    cached = list(texts.iterdir()) if texts.is_dir() else []
    try:
        for path in [*entries, *cached]:
            (copy / path.relative_to(root.resolve())).symlink_to(path)
    except OSError:  # Windows allows links to few users; embeddings are then written beside it
        return root.resolve()
    return copy


def _train(
    folder: Path, name: str, *, device: str, resume: bool = False, kill_at: int | None = None
) -> None:
    """Run `sa3lora train` in a process of its own, and kill it when a step is done."""
    source = Path(__file__).resolve().parents[2]
    paths = [str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "sa3lora", "train", "recipe.yaml", "--name", name]
    process = subprocess.Popen(
        [*command, "--device", device, "--quiet", *(["--resume"] if resume else [])],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    killed = False
    try:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip())
            if not killed and kill_at is not None and line.startswith(f"step {kill_at}: "):
                process.kill()
                killed = True
    finally:
        process.kill()
        process.wait()
    ended = process.returncode == 0
    if ended if kill_at is None else killed and not ended:
        return
    told = "\n  ".join(lines[-_LAST_LINES:])
    raise RunError(
        f"the run that was to be {name} ended with status {process.returncode} after:\n  {told}\n"
        "Make `sa3lora train` work with this recipe first."
    )


def _compare(
    first: Path, second: Path, *, steps: int, killed_at: int, resumed_from: int
) -> ResumeProof:
    adapters = [dict(_flat(load_file(path / "adapter.safetensors"))) for path in (first, second)]
    states = [_optimizer_state(path) for path in (first, second)]
    return ResumeProof(
        steps=steps,
        killed_at=killed_at,
        resumed_from=resumed_from,
        adapters=(_hash(adapters[0]), _hash(adapters[1])),
        states=(_hash(states[0]), _hash(states[1])),
        differences=(*_differences(*adapters), *_differences(*states)),
    )


def _optimizer_state(checkpoint: Path) -> dict[str, Any]:
    """Read everything that a checkpoint holds beside the adapter and the random states."""
    found: dict[str, Any] = {}
    for path in sorted(checkpoint.iterdir()):
        if path.suffix == ".safetensors" and path.name != "adapter.safetensors":
            found |= _flat(load_file(path), prefix=path.stem)
        elif path.suffix == ".pt" and path.name != "random.pt":
            state = torch.load(path, weights_only=True, map_location="cpu")
            found |= _flat(state, prefix=path.stem)
    return found


def _flat(value: Any, *, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        children: Any = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    else:
        yield prefix, value
        return
    for key, child in children:
        yield from _flat(child, prefix=f"{prefix}.{key}".lstrip("."))


def _hash(values: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(values):
        value = values[name]
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    found = [f"{name} is in one of the two only" for name in sorted(first.keys() ^ second.keys())]
    for name in sorted(first.keys() & second.keys()):
        one, two = first[name], second[name]
        if not isinstance(one, Tensor) or not isinstance(two, Tensor):
            if one != two:
                found.append(f"{name} is {one} without interruption and {two} after the resume")
        elif one.shape != two.shape or not torch.equal(one, two):
            gap = (one.double() - two.double()).abs().max() if one.shape == two.shape else "shape"
            found.append(f"{name} differs (by up to {gap})")
    more = len(found) - _SHOWN
    return [*found[:_SHOWN], f"and {more} more"] if more > 0 else found
