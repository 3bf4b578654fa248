"""What a run trains, and the bytes it takes beside the weights, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping

from sa3lora.adapters.config import LOKR, AdapterConfig, parameter_sizes
from sa3lora.adapters.lokr import lokr_sizes
from sa3lora.recipe import OptimSection
from sa3lora.training.optimizers import is_factor

_FLOAT32 = 4
# From this size on a tensor of adamw8bit has moments of 8 bits, with a scale for each so many.
_EIGHT_BIT_SIZE, _EIGHT_BIT_BLOCK = 4096, 256


def trained_sizes(adapter: AdapterConfig, shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Count the numbers of every tensor of an adapter on layers of these (fan_out, fan_in).

    Names are those of `adapter_parameters`.
    """
    if adapter.type == LOKR:
        return lokr_sizes(adapter, shapes)
    return {
        f"{site}.{name}": size
        for site, shape in shapes.items()
        for name, size in parameter_sizes(adapter.type, adapter.r, *shape).items()
    }


def bytes_each(optim: OptimSection, sizes: Mapping[str, int]) -> float:
    """Give what a trained number takes on average, in bytes, all float32 but for 8-bit moments.

    That is itself, its gradient, its average if one is kept, and what the optimizer keeps of it.
    Steps of several batches add up in the same gradient.

    Args:
        optim: The recipe's `optim` section.
        sizes: Numbers of every trained tensor by name.
    """
    kept = sum(_kept(optim.name, name, size) for name, size in sizes.items())
    copies = 2 if optim.ema_decay is None else 3
    return copies * _FLOAT32 + kept / sum(sizes.values())


def _kept(optimizer: str, name: str, size: int) -> int:
    """Count what an optimizer keeps of one tensor: AdamW's two moments, if nothing else."""
    if optimizer == "adamw8bit" and size >= _EIGHT_BIT_SIZE:
        return 2 * (size + _FLOAT32 * -(-size // _EIGHT_BIT_BLOCK))
    if optimizer == "muon" and is_factor(name):
        return _FLOAT32 * size
    if optimizer == "prodigy":
        # beside moments a sum of gradients, and the first values unless they are all zero
        return 4 * _FLOAT32 * size
    return 2 * _FLOAT32 * size
