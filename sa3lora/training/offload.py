"""Frozen weights of the blocks in CPU memory, on the device only while their block is at work.

For GPUs that hold the activations of a model but not its weights. Every block is recomputed in the
backward pass, so its weights are needed twice a step and are copied twice. What a copy costs, and
the memory that it saves, was never measured on a GPU.

accelerate's own hooks go with a module's `forward` alone: they would neither meet the layers that
compute with their adapter in one step, nor let go where the recomputation of a block ends early.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sa3lora.adapters.sites import find_layers
from sa3lora.errors import RecipeError
from sa3lora.models.denoiser import Denoiser
from sa3lora.recipe import Recipe
from sa3lora.training.frozen import FrozenBytes
from sa3lora.training.memory import wants_magnitudes


@dataclass(frozen=True)
class _Slot:
    """A place for a tensor in a layer, and the tensor that lies there outside its turn."""

    place: dict[str, Any]
    name: str
    kept: Tensor

    def fetch(self, device: torch.device) -> None:
        """Put a copy on the device there."""
        copied = self.kept.detach().to(device, non_blocking=True, copy=True)
        is_parameter = isinstance(self.kept, nn.Parameter)
        self.place[self.name] = nn.Parameter(copied, False) if is_parameter else copied

    def put_back(self) -> None:
        """Let the copy go; a graph that needs it keeps it as long as it does."""
        self.place[self.name] = self.kept


def check_offload(recipe: Recipe) -> None:
    """Refuse, before anything is loaded, what needs the weights outside their block's turn.

    Raises:
        RecipeError: If blocks are not recomputed, the adapter measures the weights, or the model
            is compiled.
    """
    if not recipe.train.offload:
        return
    if (kept := recipe.train.checkpointing) not in ("auto", True, 1.0):
        raise RecipeError(
            "train.offload: a block that is not recomputed keeps its weights on the device, and "
            f"train.checkpointing is {str(kept).lower()}. Set it to true or auto."
        )
    if wants_magnitudes(recipe.adapter.type):
        raise RecipeError(
            f"train.offload: {recipe.adapter.type} measures the weights when it is saved, where "
            "they are not on the device. Take lora, lora-xs or lokr, or leave offload out."
        )
    if recipe.train.compile:
        raise RecipeError(
            "train.offload: compiled blocks would be compiled anew for every copy of their "
            "weights. Set train.compile to false, or leave offload out."
        )


def offload_row(frozen: FrozenBytes) -> str:
    """Say it for the plan."""
    return (
        f"{frozen.away / 1e6:,.0f} MB of the blocks' weights stay in CPU memory, each block's are "
        "copied for its turn; every block is recomputed"
    )


def offload_blocks(denoiser: Denoiser, device: torch.device) -> None:
    """Keep the weights of the blocks' layers on the CPU and move everything else to a device.

    Args:
        denoiser: On the CPU, adapters injected; their tensors go to the device and stay there.
        device: Where it computes.
    """
    kept: set[int] = set()
    for block in denoiser.model.transformer.layers:
        slots = [slot for layer in find_layers(block).values() for slot in _slots(layer, device)]
        for slot in slots:
            slot.put_back()  # the pinned one in the place of the first
        kept.update(id(slot.kept) for slot in slots)
        block.register_forward_pre_hook(_begin(slots, device))
        # the recomputation of a block ends with an exception once it has what it needs
        block.register_forward_hook(_end(slots), always_call=True)
    for module in denoiser.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in kept:
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            if id(buffer) not in kept:
                module._buffers[name] = buffer.to(device)


def _slots(layer: nn.Module, device: torch.device) -> list[_Slot]:
    def pinned(tensor: Tensor) -> Tensor:
        if device.type != "cuda":
            return tensor
        moved = tensor.detach().pin_memory()
        return nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved

    places: tuple[dict[str, Any], ...] = (layer._parameters, layer._buffers)
    return [
        _Slot(place, name, pinned(tensor))
        for place in places
        for name, tensor in place.items()
        if tensor is not None
    ]


def _begin(slots: list[_Slot], device: torch.device) -> Callable[..., None]:
    def begin(*_: object) -> None:
        for slot in slots:
            slot.fetch(device)

    return begin


def _end(slots: list[_Slot]) -> Callable[..., None]:
    def end(*_: object) -> None:
        for slot in slots:
            slot.put_back()

    return end
