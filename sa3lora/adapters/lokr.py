"""Train LoKr through PEFT's own layers: inject, read tensors out and in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from peft import LoKrConfig, inject_adapter_in_model
from peft.tuners.lokr.layer import LoKrLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.kron import KRON_TENSORS
from sa3lora.errors import AdapterError


def lokr_settings(config: AdapterConfig, sites: Sequence[str]) -> LoKrConfig:
    """Say in PEFT's words what is adapted and how."""
    return LoKrConfig(
        r=config.r,
        alpha=config.alpha,
        decompose_factor=config.decompose_factor,
        target_modules="|".join(map(re.escape, sites)),  # matched as a whole name
    )


def inject_lokr(
    root: nn.Module, config: AdapterConfig, *, adapter_name: str, seed: int, sites: Sequence[str]
) -> None:
    """Put a fresh, trainable LoKr on sites; the model computes what it did before.

    PEFT's first values, w1 = 0 and w2 random, from `seed` alone. Everything else in `root` stops
    requiring gradients. Global random state is left alone.

    Raises:
        AdapterError: If another adapter is injected: PEFT does not mix LoKr with others.
    """
    if any(isinstance(module, BaseTunerLayer) for module in root.modules()):
        raise AdapterError(
            "lokr cannot be injected beside another adapter. Take it out, or fold it in first."
        )
    with torch.random.fork_rng(devices=cuda_devices(root)):
        inject_adapter_in_model(lokr_settings(config, sites), root, adapter_name)
        root.requires_grad_(False)
        torch.manual_seed(seed)
        for _, layer in _layers(root, adapter_name):
            for parameter in _tensors(layer, adapter_name).values():
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
            layer.reset_adapter_parameters(adapter_name)


def cuda_devices(root: nn.Module) -> list[torch.device]:
    """List the GPUs that a model lies on, whose random states injection may touch."""
    return sorted({p.device for p in root.parameters() if p.device.type == "cuda"}, key=str)


def has_lokr(root: nn.Module, adapter_name: str) -> bool:
    """Tell whether a LoKr of that name is injected."""
    return bool(_layers(root, adapter_name))


def export_lokr(root: nn.Module, adapter_name: str) -> dict[str, dict[str, Tensor]]:
    """Copy the tensors out by site, float32, on the CPU, in PEFT's shapes."""
    return {
        site: {
            name: p.detach().to("cpu", torch.float32, copy=True)
            for name, p in _tensors(layer, adapter_name).items()
        }
        for site, layer in _layers(root, adapter_name)
    }


def import_lokr(
    root: nn.Module, tensors: Mapping[str, Mapping[str, Tensor]], adapter_name: str
) -> None:
    """Set the tensors bit for bit from what `export_lokr` gave.

    Raises:
        AdapterError: Listing what does not fit; nothing is then changed.
    """
    ours = {site: _tensors(layer, adapter_name) for site, layer in _layers(root, adapter_name)}
    wanted = {f"{s}.{n}": tuple(p.shape) for s, group in ours.items() for n, p in group.items()}
    found = {f"{s}.{n}": tuple(t.shape) for s, group in tensors.items() for n, t in group.items()}
    problems = [
        f"{key}: must be {wanted.get(key, 'absent')}, got {found.get(key, 'nothing')}"
        for key in sorted({*wanted, *found})
        if wanted.get(key) != found.get(key)
    ]
    if problems:
        raise AdapterError("\n  ".join([f"the state does not fit {adapter_name!r}", *problems]))
    with torch.no_grad():
        for site, group in ours.items():
            for name, parameter in group.items():
                parameter.copy_(tensors[site][name])


def lokr_parameters(root: nn.Module, adapter_name: str) -> list[tuple[str, nn.Parameter]]:
    """List (`<site>.lokr_w1`, parameter) in an order that never changes."""
    return [
        (f"{site}.{name}", parameter)
        for site, layer in _layers(root, adapter_name)
        for name, parameter in _tensors(layer, adapter_name).items()
    ]


def lokr_sizes(config: AdapterConfig, shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Count the numbers of every trained tensor, by the names of `lokr_parameters`.

    Args:
        config: Of the adapter.
        shapes: (fan_out, fan_in) of its layers. Nothing is allocated.
    """
    numbered = {str(number): site for number, site in enumerate(shapes)}  # a site has dots
    with torch.device("meta"):
        root = nn.ModuleDict(
            {
                number: nn.Linear(shapes[site][1], shapes[site][0], bias=False)
                for number, site in numbered.items()
            }
        )
        inject_adapter_in_model(lokr_settings(config, list(root)), root, "default")
    sizes = {}
    for name, parameter in lokr_parameters(root, "default"):
        number, _, tensor = name.partition(".")
        sizes[f"{numbered[number]}.{tensor}"] = parameter.numel()
    return sizes


def _layers(root: nn.Module, adapter_name: str) -> list[tuple[str, LoKrLayer]]:
    return sorted(
        (name, module)
        for name, module in root.named_modules()
        if isinstance(module, LoKrLayer) and adapter_name in module._available_adapters
    )


def _tensors(layer: LoKrLayer, adapter_name: str) -> dict[str, nn.Parameter]:
    stored = {name: getattr(layer, name) for name in KRON_TENSORS}
    return {name: held[adapter_name] for name, held in stored.items() if adapter_name in held}
