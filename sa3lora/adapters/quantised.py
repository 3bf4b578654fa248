"""What can be trained beside weights that are held in few bits."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from sa3lora.adapters.config import LOKR, AdapterConfig
from sa3lora.errors import AdapterError

#: Types that add to what a layer gives and never ask for its weight.
UNFOLDED = ("lora", "lora-xs")


def is_quantised(layer: nn.Module) -> bool:
    """Tell whether a linear layer holds its weight in few bits, as its attribute `quantised`."""
    return hasattr(layer, "quantised")


def quantised_problem(config: AdapterConfig) -> str | None:
    """Say why an adapter cannot be trained on quantised weights; None if it can."""
    if config.init != "default":
        return (
            f"init {config.init} starts from the leading part of the weights and would leave what "
            "rounding moved in them; take init default, or keep the base in bfloat16"
        )
    if config.type in UNFOLDED:
        return None
    if config.type == LOKR:
        why = "makes a full matrix beside each weight, which takes what a small base saves"
    else:
        why = (
            "is trained against the lengths of the weights, and those of rounded weights are "
            "others than those that the file is played on"
        )
    return f"{config.type} {why}; take {' or '.join(UNFOLDED)}, or keep the base in bfloat16"


def check_quantised(layers: Iterable[nn.Module], config: AdapterConfig, *, stored: bool) -> None:
    """Refuse what does not go beside quantised layers, if any of these is one.

    Args:
        layers: That would carry the adapter.
        config: The adapter.
        stored: Whether their weights as they are on disk are at hand.

    Raises:
        AdapterError: If the type or its start reads the weights, or would have to.
    """
    if not any(is_quantised(layer) for layer in layers):
        return
    if (problem := quantised_problem(config)) is not None:
        raise AdapterError(f"on a quantised base, {problem}.")
    if config.type.endswith("-xs") and not stored:
        raise AdapterError(
            f"{config.type} acts along singular vectors of the stored weights, not of quantised "
            "ones: give inject_adapter the stored weights."
        )
