"""Train adapters through PEFT: inject into a model, read tensors out and in, take out again.

The model is any module whose children are named as in the official files (`model`,
`conditioners`). Adapters are float32 on a base of any type, and only they are trained.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sa3lora.adapters.config import LOW_RANK, AdapterConfig
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.sites import find_layers, patterns_for, select_sites
from sa3lora.errors import AdapterError


def inject_adapter(
    root: nn.Module, config: AdapterConfig, *, adapter_name: str = "default", seed: int = 0
) -> list[str]:
    """Put a fresh, trainable adapter on the chosen sites; the model computes what it did before.

    A ~ U(-1/sqrt(fan_in), 1/sqrt(fan_in)) from `seed` alone, B = 0. Everything else in `root` stops
    requiring gradients, adapters injected earlier included. Global random state is left alone.

    Returns:
        The sites, sorted.

    Raises:
        AdapterError: If the type cannot be trained yet, the name is taken, a pattern matches
            nothing, or a chosen convolution is grouped or dilated.
    """
    if config.type != "lora":
        raise AdapterError(f"adapter.type {config.type} cannot be trained yet, only lora can")
    if any(adapter_name in _weights(layer, "lora_A") for layer in _wrapped(root).values()):
        raise AdapterError(f"an adapter named {adapter_name!r} is injected already")
    layers = find_layers(root)
    sites = select_sites(layers, config)
    _refuse_odd_convolutions({site: layers[site] for site in sites})
    settings = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.lora_dropout,
        target_modules="|".join(map(re.escape, sites)),  # matched as a whole name
    )
    with torch.random.fork_rng(devices=_cuda_devices(root)):
        inject_adapter_in_model(settings, root, adapter_name)
    root.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    wrapped = _wrapped(root)
    for site in sites:
        layer = wrapped[site]
        layer.train(layers[site].training)
        layer.set_adapter([*_active(layer, adapter_name), adapter_name])
        _initialise(layer, adapter_name, generator=generator)
    for _, parameter in _parameters(root, adapter_name=None):
        parameter.requires_grad_(False)
    for _, parameter in _parameters(root, adapter_name=adapter_name):
        parameter.requires_grad_(True)
    return sites


def export_adapter(
    root: nn.Module, *, adapter_name: str = "default"
) -> dict[str, dict[str, Tensor]]:
    """Copy an injected adapter out as SA3 tensors: matrices, float32, on the CPU, by site.

    Raises:
        AdapterError: If no adapter of that name is injected.
    """
    return {
        site: {
            name: parameter.detach().to("cpu", torch.float32, copy=True).flatten(1)
            for name, parameter in parameters.items()
        }
        for site, parameters in _by_site(root, adapter_name).items()
    }


def export_file(
    root: nn.Module,
    config: AdapterConfig,
    *,
    adapter_name: str = "default",
    metadata: Mapping[str, str] | None = None,
) -> AdapterFile:
    """Give an injected adapter as a file to write, with patterns that select exactly its sites."""
    tensors = export_adapter(root, adapter_name=adapter_name)
    include, exclude = patterns_for(tensors, find_layers(root), config)
    stored = dataclasses.replace(config, include=include, exclude=exclude)
    return AdapterFile(stored, tensors, dict(metadata or {}))


def import_adapter_state(
    root: nn.Module,
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    adapter_name: str = "default",
) -> None:
    """Set the tensors of an injected adapter, bit for bit, from what `export_adapter` gave.

    Raises:
        AdapterError: Listing every site or tensor that is missing, unexpected or misshapen;
            nothing is then changed.
    """
    injected = _by_site(root, adapter_name)
    problems = [f"{site}: not in the state" for site in injected if site not in tensors]
    problems += [f"{site}: not an injected site" for site in tensors if site not in injected]
    for site in sorted(set(injected) & set(tensors)):
        for name, parameter in injected[site].items():
            wanted = tuple(parameter.flatten(1).shape)
            found = tuple(tensors[site][name].shape) if name in tensors[site] else None
            if found != wanted:
                problems.append(f"{site}.{name}: must be {wanted}, got {found}")
    if problems:
        raise AdapterError("\n  ".join([f"the state does not fit {adapter_name!r}", *problems]))
    with torch.no_grad():
        for site, parameters in injected.items():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[site][name].reshape(parameter.shape))


def adapter_parameters(
    root: nn.Module, *, adapter_name: str = "default"
) -> list[tuple[str, nn.Parameter]]:
    """List (`<site>.lora_A`, parameter) of an injected adapter, in an order that never changes."""
    return _parameters(root, adapter_name=adapter_name)


def eject_adapter(root: nn.Module) -> None:
    """Take every injected adapter out: the very layers from before are back in their places.

    They stay frozen, as injection left them.
    """
    for site, layer in _wrapped(root).items():
        parent_name, _, name = site.rpartition(".")
        setattr(root.get_submodule(parent_name), name, layer.get_base_layer())
    if hasattr(root, "peft_config"):
        del root.peft_config


def _wrapped(root: nn.Module) -> dict[str, BaseTunerLayer]:
    return {
        name: module for name, module in root.named_modules() if isinstance(module, BaseTunerLayer)
    }


def _weights(layer: BaseTunerLayer, name: str) -> nn.ModuleDict:
    weights = getattr(layer, name)
    assert isinstance(weights, nn.ModuleDict)
    return weights


def _active(layer: BaseTunerLayer, adapter_name: str) -> list[str]:
    known = _weights(layer, "lora_A")
    return [name for name in layer.active_adapters if name in known and name != adapter_name]


def _initialise(layer: BaseTunerLayer, adapter_name: str, *, generator: torch.Generator) -> None:
    down = _weights(layer, "lora_A")[adapter_name].float().weight
    up = _weights(layer, "lora_B")[adapter_name].float().weight
    assert isinstance(down, nn.Parameter)
    assert isinstance(up, nn.Parameter)
    bound = 1.0 / math.sqrt(down[0].numel())
    drawn = torch.empty(down.shape).uniform_(-bound, bound, generator=generator)
    with torch.no_grad():
        down.copy_(drawn)
        up.zero_()


def _by_site(root: nn.Module, adapter_name: str) -> dict[str, dict[str, nn.Parameter]]:
    found: dict[str, dict[str, nn.Parameter]] = {}
    for key, parameter in _parameters(root, adapter_name=adapter_name):
        site, _, name = key.rpartition(".")
        found.setdefault(site, {})[name] = parameter
    if not found:
        raise AdapterError(f"no adapter named {adapter_name!r} is injected")
    return found


def _parameters(root: nn.Module, *, adapter_name: str | None) -> list[tuple[str, nn.Parameter]]:
    found = []
    for site, layer in sorted(_wrapped(root).items()):
        for tensor in LOW_RANK:
            for name, module in _weights(layer, tensor).items():
                if adapter_name in (None, name):
                    weight = module.weight
                    assert isinstance(weight, nn.Parameter)
                    found.append((f"{site}.{tensor}", weight))
    return found


def _refuse_odd_convolutions(layers: Mapping[str, nn.Module]) -> None:
    odd = [
        f"{site}: groups {layer.groups}, dilation {layer.dilation[0]}"
        for site, layer in layers.items()
        if isinstance(layer, nn.Conv1d) and (layer.groups != 1 or layer.dilation != (1,))
    ]
    if odd:
        raise AdapterError(
            "\n  ".join(["grouped or dilated convolutions cannot carry an adapter", *odd])
        )


def _cuda_devices(root: nn.Module) -> list[torch.device]:
    return sorted({p.device for p in root.parameters() if p.device.type == "cuda"}, key=str)
