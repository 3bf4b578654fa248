"""FSDP2: the frozen base spread over the processes, the adapter whole in each of them.

What an accelerate config asks for is read from the environment that its launcher makes. The base is
spread here and not by `Accelerator.prepare`, which would spread the adapter too: its optimizers,
averages, checkpoints and gradients stay exactly what they are without FSDP2. Each block gathers
its weights before it computes, forward and backward, and lets go of them afterwards. A frozen
weight has no gradient, so nothing else is exchanged.

A run ends in the adapter of a run without it, bit for bit on a CPU. FSDP2 hands the inputs of a
block through a node of autograd, where the gradients of all branches that take an input meet before
they are added to those of other blocks; `CrossAttention` therefore has such a node always, or sums
in bfloat16 would be rounded in another order (which moved losses by 8e-4 and more).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from sa3lora.adapters.config import LOKR, AdapterConfig
from sa3lora.adapters.parts import AdapterParts
from sa3lora.errors import RecipeError, RunError
from sa3lora.models.denoiser import Denoiser, PromptConditioner
from sa3lora.models.quantised import QUANT_KINDS
from sa3lora.recipe import Recipe
from sa3lora.training.validation import evaluating

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
_SWITCH = "take recipes/accelerate/fsdp2.yaml, or multi_gpu.yaml for a whole base in each process"
# Options with the values that are what happens here, and why no other is.
_FOLLOWED: dict[str, tuple[tuple[str, ...], str]] = {
    "FSDP_SHARDING_STRATEGY": (
        ("full_shard", "1"), "the base is spread over all processes; leave it out"
    ),
    "FSDP_RESHARD_AFTER_FORWARD": ((*_TRUE, *_FALSE), "FSDP2 takes true or false"),
    "FSDP_AUTO_WRAP_POLICY": (
        ("transformer_based_wrap",), "every block is a unit; take TRANSFORMER_BASED_WRAP"
    ),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": (("block",), "every block is a unit; take Block"),
    "FSDP_OFFLOAD_PARAMS": (_FALSE, "weights stay on their devices"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": (
        _FALSE, "every process reads the weights and keeps its share; set it to false"
    ),
    "FSDP_ACTIVATION_CHECKPOINTING": (_FALSE, "the recipe's train.checkpointing decides"),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": (_FALSE, "the recipe's train.checkpointing decides"),
    "FSDP_FORWARD_PREFETCH": (_FALSE, "FSDP2 has its own"),
    "FSDP_BACKWARD_PREFETCH": (("no_prefetch",), "FSDP2 has its own; leave it out"),
    "FSDP_STATE_DICT_TYPE": ((), "checkpoints hold the adapter, which is whole; leave it out"),
    "FSDP_IGNORED_MODULES": ((), "the adapter is left alone anyway; leave it out"),
    "ACCELERATE_MIXED_PRECISION": (("no",), "the recipe's train.dtype decides; set it to no"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (_FALSE, "processes form one group; leave it out"),
}  # fmt: skip


@dataclass(frozen=True)
class Sharding:
    """How the frozen base is spread.

    Attributes:
        num_processes: Over so many.
        reshard_after_forward: Whether a block lets go of its weights between its forward and its
            backward pass, and gathers them twice.
    """

    num_processes: int
    reshard_after_forward: bool = True


@dataclass(frozen=True)
class Share:
    """How many numbers of the base a process holds.

    Attributes:
        kept: At all times: its share, and what is not spread.
        gathered: Beside these at most, while it computes.
    """

    kept: int
    gathered: int


def asks_for_sharding() -> bool:
    """Tell whether the launcher asks for FSDP2.

    Raises:
        RunError: If it asks for FSDP1, or for an option of FSDP2 that is not followed here.
            `use_orig_params`, `sync_module_states` and `min_num_params` mean nothing in FSDP2.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() not in _TRUE:
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise RunError(
            f"the accelerate config asks for FSDP {version}, which cannot leave an adapter whole. "
            f"Set fsdp_version: 2 in its fsdp_config: {_SWITCH}."
        )
    problems = []
    for variable, (good, reason) in _FOLLOWED.items():
        value = os.environ.get(variable, "")
        if value and value.lower() not in good:
            name = variable.removeprefix("ACCELERATE_").lower()
            problems.append(f"{name}: {value} is not followed, because {reason}")
    if problems:
        raise RunError("\n  ".join([f"the accelerate config does not fit; {_SWITCH}", *problems]))
    return True


def choose_sharding(
    recipe: Recipe, adapter: AdapterConfig, *, num_processes: int
) -> Sharding | None:
    """Give what the launcher asks for, None where each process holds the whole base.

    Raises:
        RunError: If there is only one process.
        RecipeError: If the recipe asks for what needs the whole base in each.
    """
    if not asks_for_sharding():
        return None
    if num_processes == 1:
        raise RunError(
            "FSDP2 spreads the base over processes, but there is only one. Raise num_processes, or "
            "take recipes/accelerate/single_gpu.yaml."
        )
    if recipe.train.compile:
        raise RecipeError("train.compile: not with FSDP2, set train.compile=false")
    quantised = recipe.train.base_dtype in QUANT_KINDS
    if quantised or recipe.train.offload:
        key = "train.base_dtype" if quantised else "train.offload"
        value = recipe.train.base_dtype if quantised else "true"
        raise RecipeError(
            f"{key}: {value} keeps a base small that FSDP2 spreads over processes. Leave it out, "
            "or launch with recipes/accelerate/multi_gpu.yaml."
        )
    plain = adapter.type == LOKR or (adapter.type == "lora" and adapter.init != "pissa")
    if recipe.adapter.stack_entries() and not plain:
        raise RecipeError(
            f"adapter.stack: under a {adapter.type} adapter every process would keep the untouched "
            "base beside its share. With FSDP2 take adapter.type=lora, or launch with "
            "recipes/accelerate/multi_gpu.yaml"
        )
    wanted = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    return Sharding(num_processes, reshard_after_forward=wanted in _TRUE)


def share_of_base(denoiser: Denoiser, sharding: Sharding) -> Share:
    """Count what a process holds of a base without adapters; it may be on the meta device."""
    blocks = list(denoiser.model.transformer.layers)
    of_blocks = [_count(block) for block in blocks]
    spread = sum(
        -(-len(parameter) // sharding.num_processes) * parameter[0].numel()
        for parameter in denoiser.model.parameters()
    )
    outside = _count(denoiser.model) - sum(of_blocks)
    # the next block is gathered while one computes
    at_once = sum(of_blocks) if not sharding.reshard_after_forward else 2 * max(of_blocks)
    return Share(spread + _count(denoiser.conditioners), outside + min(at_once, sum(of_blocks)))


def shard_base(denoiser: Denoiser, sharding: Sharding, *, device: torch.device) -> None:
    """Keep this process' share of the transformer alone; all processes call it together.

    Adapters, and the few weights that embed prompts and durations, stay whole. Outside of a
    forward or backward pass a weight of the transformer is then a `DTensor`.

    Args:
        denoiser: With its adapter; in the processor's memory, so that a device never holds more
            than the shares and one block.
        sharding: Over how many processes.
        device: Where to compute.

    Raises:
        RecipeError: If a magnitude would have to be measured on a weight that is spread.
    """
    ours = _adapter_parameters(denoiser)
    _refuse_dead(denoiser)
    mesh = init_device_mesh(device.type, (sharding.num_processes,))
    for block in denoiser.model.transformer.layers:
        fully_shard(
            block,
            mesh=mesh,
            reshard_after_forward=sharding.reshard_after_forward,
            ignored_params=ours,
        )
    # its backward pass begins where its forward pass ends
    fully_shard(denoiser.model, mesh=mesh, reshard_after_forward=False, ignored_params=ours)
    denoiser.conditioners.to(device)
    for parameter in ours:
        parameter.data = parameter.data.to(device)
    _first_pass(denoiser, device)


@contextmanager
def whole_base(denoiser: Denoiser, sharding: Sharding | None) -> Iterator[None]:
    """Gather the base in every process, so that one of them may compute without the others.

    All processes enter together. Where the base is not spread nothing happens.
    """
    if sharding is None:
        yield
        return
    blocks = _units(denoiser.model.transformer.layers)
    [root] = _units([denoiser.model])
    for unit in (root, *blocks):
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for block in blocks:
            block.set_reshard_after_forward(sharding.reshard_after_forward, recurse=False)
        # What it remembers of the order of blocks must be the same in processes that computed
        # nothing, or they would wait for different weights. Lets go of the weights too.
        root.reset_iter_state()


def _units(modules: Iterable[nn.Module]) -> list[FSDPModule]:
    return [module for module in modules if isinstance(module, FSDPModule)]


@torch.no_grad()
def _first_pass(denoiser: Denoiser, device: torch.device) -> None:
    """Compute one frame of nothing: FSDP2 sets itself up in the first pass, here in all at once."""
    prompt = denoiser.conditioners["prompt"]
    assert isinstance(prompt, PromptConditioner)
    channels = denoiser.model.config.io_channels
    with evaluating(denoiser):
        conditioning = denoiser.condition([torch.zeros(0, prompt.dim)], torch.ones(1))
        noise = torch.zeros(1, channels, 1, device=device, dtype=denoiser.dtype)
        denoiser.velocity(noise, torch.ones(1, device=device), conditioning)
    [root] = _units([denoiser.model])
    root.reset_iter_state()  # lets go of what is not in blocks too


def _adapter_parameters(denoiser: Denoiser) -> set[nn.Parameter]:
    """Collect what adapters added to layers, frozen bases of theirs included."""
    return {
        parameter
        for layer in denoiser.modules()
        if hasattr(layer, "base_layer")
        for name, parameter in layer.named_parameters()
        if not name.startswith("base_layer.")
    }


def _refuse_dead(denoiser: Denoiser) -> None:
    """Files give the norm of the weight where no magnitude can scale it; see `AdapterParts`."""
    dead = [
        name.partition(".lora_parts")[0]
        for name, module in denoiser.named_modules()
        if isinstance(module, AdapterParts) and module.has_dead
    ]
    if dead:
        raise RecipeError(
            f"adapter.type: {len(dead)} layers have rows or columns of zeros ({dead[0]}), whose "
            "magnitudes are measured on the whole weight. With FSDP2 take adapter.type=lora, or "
            "launch with recipes/accelerate/multi_gpu.yaml"
        )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
