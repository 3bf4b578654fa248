"""A training loop that can be killed: parameters, optimizer, averages and random states as one.

The loop knows nothing of models or data. Its owner computes losses and gradients, calls `update`
once a step, `save` when it likes and `restore` before the first step; what it saved is all that a
new process needs to go on with the same numbers.
"""

from __future__ import annotations

import copy
import io
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sa3lora.errors import CheckpointError, DivergenceError
from sa3lora.recipe import OptimSection
from sa3lora.training.checkpoint import (
    finish_interrupted,
    newest_checkpoint,
    remove_older,
    write_checkpoint,
)
from sa3lora.training.optim import LearningRate, Update, clip_gradients
from sa3lora.training.optimizers import (
    Optimizer,
    TakesMuon,
    effective_rate,
    make_optimizer,
    set_rate,
)
from sa3lora.training.processes import Alone, Processes
from sa3lora.training.rng import collect_rng, restore_rng

logger = logging.getLogger(__name__)

_PARAMETERS = "parameters.safetensors"
_AVERAGES = "averages.safetensors"
_OPTIMIZER = "optimizer.pt"
_RANDOM = "random.pt"


class ResumableLoop:
    """Owner of everything that changes from step to step.

    Attributes:
        parameters: What is trained, by name.
        step: Number of finished optimizer steps.
        passed_over: Sentences about checkpoints that `restore` could not use.
        lr_factor: What every learning rate is multiplied by. The owner keeps it with a checkpoint.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        optim: OptimSection,
        max_steps: int,
        folder: Path,
        generators: Mapping[str, Generator],
        keep: int = 3,
        ema_decay: float | None = None,
        takes_muon: TakesMuon | None = None,
        processes: Processes | None = None,
        write_tensors: Callable[[Path], None] | None = None,
        read_tensors: Callable[[Path], None] | None = None,
    ) -> None:
        """Prepare a loop at step 0.

        Args:
            parameters: What is trained, by name.
            optim: The recipe's `optim` section, but for its `ema_decay`.
            max_steps: Length of the run, for schedules that end.
            folder: Where checkpoints go.
            generators: Every generator that the owner draws from.
            keep: How many checkpoints stay.
            ema_decay: Keep an exponential average of the parameters, with this decay.
            takes_muon: Which parameters are Muon's, as `make_optimizer` takes it.
            processes: Who else trains with this process.
            write_tensors: Writes the parameters into a checkpoint's folder in a form of the
                owner's own; by default `parameters.safetensors` by name. Where averages are kept
                it writes those, and the parameters are written by name beside them.
            read_tensors: Reads that form back into the parameters.
        """
        self.step = 0
        self.lr_factor = 1.0
        self.passed_over: list[str] = []
        self.parameters = dict(parameters)
        self._max_grad_norm = optim.max_grad_norm
        self._lr = LearningRate(
            peak=optim.lr,
            schedule=optim.schedule,
            warmup_steps=optim.warmup_steps,
            max_steps=max_steps,
            floor=optim.min_lr,
        )
        self._optimizer: Optimizer = make_optimizer(self.parameters, optim, takes_muon=takes_muon)
        self._folder = folder
        self._generators = dict(generators)
        self._keep = keep
        self._ema_decay = ema_decay
        self._processes: Processes = processes or Alone()
        self._write_tensors = write_tensors
        self._read_tensors = read_tensors
        averaged = {} if ema_decay is None else self.parameters
        self.averages = {name: p.detach().clone().float() for name, p in averaged.items()}
        self._beginning = {n: p.detach().cpu().clone() for n, p in self.parameters.items()}
        self._fresh_optimizer = copy.deepcopy(self._optimizer.state_dict())

    def update(self, *, weight: float | Tensor = 1.0) -> Update:
        """Take one optimizer step on the gradients and forget them.

        Args:
            weight: How much this process counts beside the others: its number of clips. Not a
                number if its loss was none.

        Raises:
            DivergenceError: If gradients or weight are not finite; nothing is changed then.
        """
        norm = self._gradients(weight)
        try:
            Update(self.step + 1, norm, lr=0.0).require_finite()
        except DivergenceError:
            self._optimizer.zero_grad(set_to_none=True)
            raise
        return self._step(norm)

    def update_unchecked(self, *, weight: float | Tensor = 1.0) -> Update:
        """Take a step as `update` does, without waiting for the device to tell how it went.

        The owner calls `require_finite` of the result before anything that comes from the
        parameters is kept or shown, and goes back with `restore` or `reset` if it raises: a step
        on what is no number leaves parameters, averages and optimizer without any.
        """
        return self._step(self._gradients(weight))

    def _gradients(self, weight: float | Tensor) -> Tensor:
        """Average and clip; return the norm, no number if the weight is none in any process."""
        parameters = list(self.parameters.values())
        self._processes.average([p.grad for p in parameters if p.grad is not None], weight=weight)
        norm = clip_gradients(parameters, self._max_grad_norm)
        if isinstance(weight, Tensor):
            return torch.where(weight.isfinite(), norm, torch.nan)
        return norm if math.isfinite(weight) else torch.full_like(norm, torch.nan)

    def _step(self, norm: Tensor) -> Update:
        lr = self._lr.at(self.step) * self.lr_factor
        set_rate(self._optimizer, lr)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._update_averages()
        rate = effective_rate(self._optimizer, lr)
        return Update(step=self.step, grad_norm=norm, lr=rate)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averages in the place of the parameters for a while, if any are kept.

        The parameters are afterwards what they were, bit for bit. Take no step inside.
        """
        if not self.averages:
            yield
            return
        trained = {name: p.detach().clone() for name, p in self.parameters.items()}
        with torch.no_grad():
            for name, average in self.averages.items():
                self.parameters[name].copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in trained.items():
                    self.parameters[name].copy_(tensor)

    def save(self, info: Mapping[str, Any]) -> Path:
        """Write a checkpoint of this step, with the owner's JSON values (sampler position ...).

        Raises:
            DivergenceError: If a parameter is no number; nothing is written then.
        """
        if broken := [n for n, p in self.parameters.items() if not bool(p.isfinite().all())]:
            raise DivergenceError(f"step {self.step}: {broken[0]} is no number", step=self.step)
        random_states = self._processes.gather(collect_rng(self._generators))
        path = self._folder / f"step-{self.step:08d}"

        def fill(folder: Path) -> None:
            if self._write_tensors is not None:
                with self.averaged():
                    self._write_tensors(folder)
            if self._write_tensors is None or self.averages:
                _write_tensors(self.parameters, folder / _PARAMETERS)
            _write_object(self._optimizer.state_dict(), folder / _OPTIMIZER)
            _write_object(random_states, folder / _RANDOM)
            if self.averages:
                _write_tensors(self.averages, folder / _AVERAGES)

        if self._processes.is_main:
            path = write_checkpoint(self._folder, self.step, fill=fill, info=info, keep=self._keep)
        self._processes.wait()
        return path

    def restore(self) -> dict[str, Any] | None:
        """Go back to the newest checkpoint that is whole.

        Returns:
            What the owner gave to `save`, or None if there is no checkpoint to go back to.

        Raises:
            CheckpointError: If the checkpoint is of other processes or other parameters.
        """
        if self._processes.is_main:
            finish_interrupted(self._folder)
        self._processes.wait()
        checkpoint, self.passed_over = newest_checkpoint(self._folder)
        if checkpoint is None:
            return None
        if self._processes.is_main and not self.passed_over:
            remove_older(self._folder, keep=self._keep)  # a kill may have come before it
        if self._read_tensors is not None:
            self._read_tensors(checkpoint.folder)
        if self._read_tensors is None or self.averages:
            self._read_by_name(checkpoint.folder / _PARAMETERS, self.parameters)
        device = next(iter(self.parameters.values())).device
        states = torch.load(checkpoint.folder / _RANDOM, weights_only=True)
        expected = len(self._processes.gather(None))
        if len(states) != expected:
            raise CheckpointError(
                f"{checkpoint.folder} was written by {len(states)} processes, this run has "
                f"{expected}. Start {len(states)} processes to go on."
            )
        optimizer = torch.load(
            checkpoint.folder / _OPTIMIZER, weights_only=True, map_location=device
        )
        self._optimizer.load_state_dict(optimizer)
        if self.averages:
            self._read_by_name(checkpoint.folder / _AVERAGES, self.averages)
        restore_rng(states[self._processes.rank], self._generators)
        self.step = checkpoint.step
        return checkpoint.info

    def reset(self) -> None:
        """Go back to the beginning, as if no step had been taken."""
        _copy_tensors(self._beginning, self.parameters, self._folder)
        _copy_tensors(
            {n: self._beginning[n].float() for n in self.averages}, self.averages, self._folder
        )
        self._optimizer.load_state_dict(copy.deepcopy(self._fresh_optimizer))
        self.step = 0

    def _update_averages(self) -> None:
        if self._ema_decay is None:
            return
        # The early average follows fast, or the first, untrained weights would stay for long.
        decay = min(self._ema_decay, (1 + self.step) / (10 + self.step))
        follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        now = [parameter.detach().float() for parameter in self.parameters.values()]
        follow([*self.averages.values()], now, self.step)

    def _read_by_name(self, path: Path, target: Mapping[str, Tensor]) -> None:
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing: the checkpoint was written with another optim.ema_decay."
            )
        _copy_tensors(load_file(path), target, path)


def _write_object(value: object, path: Path) -> None:
    buffer = io.BytesIO()  # torch's own writer hides why a disk refused
    torch.save(value, buffer)
    path.write_bytes(buffer.getvalue())


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    path.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))


def _copy_tensors(saved: Mapping[str, Tensor], target: Mapping[str, Tensor], source: Path) -> None:
    different = sorted(set(saved) ^ set(target)) + [
        name for name in saved if name in target and saved[name].shape != target[name].shape
    ]
    if different:
        shown = ", ".join(different[:5])
        raise CheckpointError(
            f"{source} holds other tensors than the model: {shown}"
            f"{' ...' if len(different) > 5 else ''}."
        )
    with torch.no_grad():
        for name, tensor in saved.items():
            target[name].copy_(tensor)
