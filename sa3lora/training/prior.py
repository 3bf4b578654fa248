"""Prior preservation: on neutral prompts the adapted model should still do what its base does.

DreamBooth (Ruiz et al., 2023) keeps a prior by training on the base's own samples. The base is at
hand here, frozen under the adapter, so its velocity itself is the target and nothing is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from sa3lora.flow import masked_mse
from sa3lora.models.denoiser import Denoiser
from sa3lora.probe import predict_velocity
from sa3lora.recipe import ObjectiveSection, read_prompts
from sa3lora.training.step import MicroBatch
from sa3lora.training.validation import without_adapters

NEUTRAL_PROMPTS = "neutral"


def prior_prompts(objective: ObjectiveSection) -> list[str]:
    """Return the prompts of the prior term, none where its weight is 0."""
    if objective.prior_weight == 0:
        return []
    return list(objective.prior_prompts or read_prompts(NEUTRAL_PROMPTS))


def draw_prompts(prompts: Sequence[str], count: int, *, generator: Generator) -> list[str]:
    """Draw one prompt for each clip, each as likely as the others."""
    chosen = torch.randint(len(prompts), (count,), generator=generator, device=generator.device)
    return [prompts[n] for n in chosen.tolist()]


def prior_loss(
    denoiser: Denoiser, batch: MicroBatch, *, text: Sequence[Tensor], packed: bool = False
) -> Tensor:
    """Mean over clips of the squared distance between the adapter's and the base's velocity.

    Both see the noisy latents, noise level, duration and given frames that the clips train at;
    only the prompt is another, and it is never dropped. The base computes with every adapter at
    rest and without gradient.

    Args:
        denoiser: Base with the adapter under training.
        batch: Clips with their draws.
        text: Token embeddings of a neutral prompt for each clip, (L_i, D).
        packed: Compute nothing for padding.

    Returns:
        Scalar with gradient, float32; 0 for a fresh adapter.
    """
    draws = replace(batch.draws, dropped=torch.zeros_like(batch.draws.dropped))

    def velocity() -> Tensor:
        return predict_velocity(
            denoiser,
            batch.latents,
            mask=batch.mask,
            seconds=batch.seconds,
            text=text,
            draws=draws,
            packed=packed,
        )

    with torch.no_grad(), without_adapters(denoiser):
        base = velocity()
    return masked_mse(velocity(), base, batch.mask)
