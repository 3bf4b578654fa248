"""Training on top of other adapters: a frozen stack in the weights, and what remembers it.

With S the changes of the stack, each of the untouched weight W at its strength, a layer that is
trained computes

    (W + S) x + delta(W) x        delta(W) = trained(W) - W

which is what playing the stack and the new adapter computes. For types with magnitudes, too, delta
is a function of the untouched W alone: their norms are those of `W + D`, never of `W + S + D`. So
the new adapter is the best addition to this stack, but knows nothing of it beyond what it learned;
played without the stack it gives `W + delta(W)`, which nobody listened to in training. Its header
therefore names the stack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sa3lora.adapters.effective import fold_into, terms_of
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.header import PREFIX
from sa3lora.adapters.sites import find_layers
from sa3lora.adapters.weights import Weights

STACK_KEY = f"{PREFIX}stack"


@dataclass(frozen=True)
class Stacked:
    """One adapter of a stack that another was trained on, as a header remembers it."""

    name: str
    content_hash: str
    strength: float


@torch.no_grad()
def fold_stack(
    root: nn.Module,
    adapters: Sequence[tuple[AdapterFile, float]],
    weights: Weights,
) -> dict[str, Tensor]:
    """Fold adapters at their strengths into the weights of a model for good.

    Each weight is summed in float32 from the stored one and rounded once to the type it has in the
    model.

    Args:
        root: The model, its weights untouched; not injected yet.
        adapters: Adapters with their strengths.
        weights: The stored base weights.

    Returns:
        The untouched weights that the model had, by site, as `inject_adapter` takes them.

    Raises:
        AdapterError: If a sum overflows the type of a weight.
    """
    layers, untouched = find_layers(root), {}
    for site in sorted({site for adapter, _ in adapters for site in adapter.tensors}):
        terms = terms_of(site, adapters)
        if terms:
            weight = layers[site].get_parameter("weight")
            untouched[site] = weight.detach().clone()
            fold_into(weight, weights(site).to(weight.device), terms, site=site)
    return untouched


def stack_metadata(stack: Sequence[Stacked]) -> dict[str, str]:
    """Name a stack in the header of what was trained on it, in an order that is always the same."""
    if not stack:
        return {}
    ordered = sorted(stack, key=lambda one: (one.content_hash, one.strength))
    return {STACK_KEY: json.dumps([vars(one) for one in ordered])}


def stack_of(adapter: AdapterFile) -> tuple[Stacked, ...]:
    """Read what an adapter was trained on top of; empty if nothing, or if it is not readable."""
    try:
        entries = json.loads(adapter.metadata.get(STACK_KEY, "[]"))
        return tuple(
            Stacked(str(one["name"]), str(one["content_hash"]), float(one["strength"]))
            for one in entries
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()


def missing_from_stack(played: Mapping[str, tuple[AdapterFile, float]]) -> list[str]:
    """Say which adapters miss what they were trained on top of; they play, but as nobody heard.

    Args:
        played: Adapters with their strengths, by what to call them.
    """
    there = {(adapter.content_hash, strength) for adapter, strength in played.values()}
    return [
        f"{label} was trained on top of {one.name} at strength {one.strength:g}, which is not "
        "played at that strength here: add it for what training computed"
        for label, (adapter, _) in played.items()
        for one in stack_of(adapter)
        if (one.content_hash, one.strength) not in there
    ]
