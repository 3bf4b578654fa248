"""What fits on cards of common sizes, from the memory model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.quantised import quantised_problem
from sa3lora.adapters.sites import site_shapes
from sa3lora.models.config import ModelConfig
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.quantised import QUANT_KINDS
from sa3lora.recipe import OptimSection
from sa3lora.training.frozen import FrozenBytes, frozen_bytes, held_in
from sa3lora.training.memory import (
    LEAN_SHARE,
    Recomputation,
    StepMemory,
    largest_fit,
    wants_magnitudes,
)
from sa3lora.training.trained_bytes import bytes_each, trained_sizes

CARDS_GB = (6, 8, 12, 16, 24)
#: Values of `train.base_dtype` that are tried.
BASE_DTYPES = (*QUANT_KINDS, "bfloat16", "float32")


@dataclass(frozen=True)
class Fit:
    """The most that fits on a card with a base in one type.

    Attributes:
        card_gb: Memory of the card.
        base_dtype: Type of the frozen weights.
        num_frames: Frames of a batch in all, None where not even the weights fit.
        recomputation: What has to be recomputed for it.
    """

    card_gb: int
    base_dtype: str
    num_frames: int | None
    recomputation: str


def what_fits(memory: StepMemory, *, frozen: Mapping[str, FrozenBytes], longest: int) -> list[Fit]:
    """Try every card with every type of the base.

    Args:
        memory: Of the model with its adapter.
        frozen: Bytes of the base, by its type.
        longest: Frames of the model's longest clip; less recomputation is preferred once this fits.
    """
    depth = memory.dit.depth
    hows = [
        Recomputation(),
        Recomputation(frugal=True),
        Recomputation(round(LEAN_SHARE * depth), frugal=True),
        Recomputation(depth),
    ]
    rows = []
    for card in CARDS_GB:
        for name, size in frozen.items():
            ours = replace(
                memory,
                base_bytes=size.held / memory.num_base,
                unpacking=size.unpacking,
                compute=torch.bfloat16,
            )
            found = largest_fit(ours, card * 10**9, hows=hows, limit=longest)
            frames, how = (found[1], found[0].describe(depth)) if found else (None, "")
            rows.append(Fit(card, name, frames, how))
    return rows


def fits_of(config: ModelConfig, adapter: AdapterConfig, *, optim: OptimSection) -> list[Fit]:
    """Say what fits of a model whose every layer carries an adapter.

    A base in few bits is tried for the adapters that can be trained on it.
    """
    assert config.dit is not None
    with torch.device("meta"):
        denoiser = Denoiser(config)
    sizes = trained_sizes(adapter, site_shapes(denoiser))
    memory = StepMemory(
        dit=config.dit,
        num_base=sum(parameter.numel() for parameter in denoiser.parameters()),
        num_trained=sum(sizes.values()),
        base_bytes=2.0,
        compute=torch.bfloat16,
        magnitudes=wants_magnitudes(adapter.type),
        context_tokens=config.max_prompt_tokens + 1,
        trained_bytes=bytes_each(optim, sizes),
    )
    names = BASE_DTYPES if quantised_problem(adapter) is None else BASE_DTYPES[len(QUANT_KINDS) :]
    frozen = {name: frozen_bytes(denoiser, held_in(name)) for name in names}
    longest = config.sample_size // config.downsampling_ratio
    return what_fits(memory, frozen=frozen, longest=longest)
