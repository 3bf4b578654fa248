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
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sa3lora.adapters import lokr
from sa3lora.adapters.config import LOKR, LOW_RANK, AdapterConfig
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.parts import PISSA, report_dead
from sa3lora.adapters.quantised import check_quantised
from sa3lora.adapters.sites import check_layers, find_layers, patterns_for, select_sites
from sa3lora.adapters.variants import Sa3LoraConfig, is_variant, low_rank_of, parts_of
from sa3lora.adapters.weights import Weights
from sa3lora.errors import AdapterError


def inject_adapter(
    root: nn.Module,
    config: AdapterConfig,
    *,
    adapter_name: str = "default",
    seed: int = 0,
    bases: Mapping[str, Tensor] | None = None,
    stored: Weights | None = None,
) -> list[str]:
    """Put a fresh, trainable adapter on the chosen sites; the model computes what it did before.

    A ~ U(-1/sqrt(fan_in), 1/sqrt(fan_in)) from `seed` alone, B = 0, M = 0, magnitudes are the norms
    of the base weight and bases of `-xs` types its singular vectors. Everything else in `root`
    stops requiring gradients, adapters injected earlier included. Global random state is left
    alone.

    Args:
        root: The model.
        config: Type, rank, scale, dropout, first values and patterns.
        adapter_name: Name for PEFT.
        seed: Seed of A.
        bases: Untouched weights of layers into which other adapters are folded, by site, as
            `AdapterStack.bases` gives them: norms and singular vectors are theirs.
        stored: Weights as they are on disk. Where the model holds them rounded, the singular
            vectors of `-xs` types are theirs, since playing takes them from there.

    Returns:
        The sites, sorted.

    Raises:
        AdapterError: If the name is taken, a pattern matches nothing, the rank exceeds a layer
            whose singular vectors are needed, or a convolution or quantised layer cannot carry it.
    """
    layers = find_layers(root)
    sites = select_sites(layers, config)
    check_layers({site: layers[site] for site in sites}, config)
    check_quantised((layers[site] for site in sites), config, stored=stored is not None)
    if config.type == LOKR:
        lokr.inject_lokr(root, config, adapter_name=adapter_name, seed=seed, sites=sites)
        return sites
    if any(adapter_name in _weights(layer, "lora_A") for layer in _wrapped(root).values()):
        raise AdapterError(f"an adapter named {adapter_name!r} is injected already")
    before = {site: list(layer.active_adapters) for site, layer in _wrapped(root).items()}
    _inject(root, config, adapter_name, sites=sites)  # PEFT activates the new one alone
    root.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    wrapped, dead = _wrapped(root), {}
    for site, active in before.items():
        wrapped[site].set_adapter(active)
    for site in sites:
        layer = wrapped[site]
        layer.train(layers[site].training)
        layer.set_adapter([*before.get(site, ()), adapter_name])
        exact = stored(site) if stored is not None and config.type.endswith("-xs") else None
        dead[site] = _initialise(
            layer, adapter_name, generator=generator, untouched=(bases or {}).get(site), exact=exact
        )
    for _, parameter in _parameters(root, adapter_name=None):
        parameter.requires_grad_(False)
    for _, parameter in _parameters(root, adapter_name=adapter_name):
        parameter.requires_grad_(True)
    report_dead(config.type, dead)
    return sites


def _inject(root: nn.Module, config: AdapterConfig, adapter_name: str, *, sites: list[str]) -> None:
    variant = PISSA if config.init == PISSA else None if config.type == "lora" else config.type
    settings = Sa3LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.lora_dropout,
        target_modules="|".join(map(re.escape, sites)),  # matched as a whole name
        sa3_type=variant,
    )
    with torch.random.fork_rng(devices=lokr.cuda_devices(root)):
        inject_adapter_in_model(settings, root, adapter_name)


def export_adapter(
    root: nn.Module, *, adapter_name: str = "default"
) -> dict[str, dict[str, Tensor]]:
    """Copy an injected adapter out as SA3 tensors: matrices, float32, on the CPU, by site.

    One that started from PiSSA comes out as plain LoRA of twice the rank, `B A` minus the part it
    started from, which is exact on the untouched base.

    Raises:
        AdapterError: If no adapter of that name is injected.
    """
    if lokr.has_lokr(root, adapter_name):
        return lokr.export_lokr(root, adapter_name)
    _require(root, adapter_name)
    return {
        site: {
            name: tensor.detach().to("cpu", torch.float32, copy=True)
            for name, tensor in _stored(layer, adapter_name).items()
        }
        for site, layer in sorted(_wrapped(root).items())
        if adapter_name in _weights(layer, "lora_A")
    }


def _stored(layer: BaseTunerLayer, adapter_name: str) -> dict[str, Tensor]:
    tensors = {name: p.detach().flatten(1) for name, p in _low_rank(layer, adapter_name).items()}
    if not is_variant(layer, adapter_name):
        return tensors
    parts = parts_of(layer, adapter_name)
    if parts.adapter_type == PISSA:
        return {
            "lora_A": torch.cat([tensors["lora_A"], parts.first_down]),
            "lora_B": torch.cat([tensors["lora_B"], -parts.first_up], dim=1),
        }
    if hasattr(parts, "M_xs"):
        tensors = {"M_xs": parts.get_parameter("M_xs").detach()}
    return tensors | parts.stored_magnitudes(*low_rank_of(layer, adapter_name))


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
    stored = dataclasses.replace(config.stored(), include=include, exclude=exclude)
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
    if lokr.has_lokr(root, adapter_name):
        lokr.import_lokr(root, tensors, adapter_name)
        return
    _require(root, adapter_name)
    wrapped = _wrapped(root)
    injected = {
        site: _stored(layer, adapter_name)
        for site, layer in wrapped.items()
        if adapter_name in _weights(layer, "lora_A")
    }
    problems = [f"{site}: not in the state" for site in injected if site not in tensors]
    problems += [f"{site}: not an injected site" for site in tensors if site not in injected]
    for site in sorted(set(injected) & set(tensors)):
        for name, parameter in injected[site].items():
            wanted = tuple(parameter.shape)
            found = tuple(tensors[site][name].shape) if name in tensors[site] else None
            if found != wanted:
                problems.append(f"{site}.{name}: must be {wanted}, got {found}")
    if problems:
        raise AdapterError("\n  ".join([f"the state does not fit {adapter_name!r}", *problems]))
    with torch.no_grad():
        for site in injected:
            _set(wrapped[site], adapter_name, tensors[site])


def _set(layer: BaseTunerLayer, adapter_name: str, tensors: Mapping[str, Tensor]) -> None:
    targets: dict[str, Tensor] = dict(_low_rank(layer, adapter_name))
    values = dict(tensors)
    if is_variant(layer, adapter_name):
        parts = parts_of(layer, adapter_name)
        targets |= dict(parts.named_parameters())
        if parts.adapter_type == PISSA:
            r = len(targets["lora_A"])
            parts.first_down.copy_(tensors["lora_A"][r:])
            parts.first_up.copy_(-tensors["lora_B"][:, r:])
            values = {"lora_A": tensors["lora_A"][:r], "lora_B": tensors["lora_B"][:, :r]}
    for name, value in values.items():
        targets[name].copy_(value.reshape(targets[name].shape))


def adapter_parameters(
    root: nn.Module, *, adapter_name: str = "default"
) -> list[tuple[str, nn.Parameter]]:
    """List (`<site>.lora_A`, parameter) of an injected adapter, in an order that never changes.

    Only what is trained: the bases of `-xs` types are not in it.
    """
    if lokr.has_lokr(root, adapter_name):
        return lokr.lokr_parameters(root, adapter_name)
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


def _low_rank(layer: BaseTunerLayer, adapter_name: str) -> dict[str, nn.Parameter]:
    return {name: _weights(layer, name)[adapter_name].get_parameter("weight") for name in LOW_RANK}


@torch.no_grad()
def _initialise(
    layer: BaseTunerLayer,
    adapter_name: str,
    *,
    generator: torch.Generator,
    untouched: Tensor | None,
    exact: Tensor | None,
) -> tuple[int, int]:
    """Set the first values; return how many rows and columns of the base cannot be scaled."""
    for name in LOW_RANK:
        _weights(layer, name)[adapter_name].float()
    low_rank = _low_rank(layer, adapter_name)
    down, up = low_rank["lora_A"], low_rank["lora_B"]
    bound = 1.0 / math.sqrt(down[0].numel())
    down.copy_(torch.empty(down.shape).uniform_(-bound, bound, generator=generator))
    up.zero_()
    if not is_variant(layer, adapter_name):
        return 0, 0
    parts = parts_of(layer, adapter_name).float()
    dead = parts.measure(untouched)
    parts.start(down, up, scale=layer.scaling[adapter_name], exact=exact)
    return dead


def _require(root: nn.Module, adapter_name: str) -> None:
    if not any(adapter_name in _weights(layer, "lora_A") for layer in _wrapped(root).values()):
        raise AdapterError(f"no adapter named {adapter_name!r} is injected")


def _parameters(root: nn.Module, *, adapter_name: str | None) -> list[tuple[str, nn.Parameter]]:
    found = []
    for site, layer in sorted(_wrapped(root).items()):
        for name in _weights(layer, "lora_A"):
            if adapter_name in (None, name):
                trained = _trained(layer, name)
                found += [(f"{site}.{tensor}", parameter) for tensor, parameter in trained.items()]
    return found


def _trained(layer: BaseTunerLayer, adapter_name: str) -> dict[str, nn.Parameter]:
    if not is_variant(layer, adapter_name):
        return _low_rank(layer, adapter_name)
    beside = dict(parts_of(layer, adapter_name).named_parameters())
    return beside if "M_xs" in beside else _low_rank(layer, adapter_name) | beside
