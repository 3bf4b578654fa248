"""The velocity that a sampler follows: prompt, negative prompt, guidance and given audio."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sa3lora.flow.guidance import guided_velocity, is_active
from sa3lora.models import Conditioning, Denoiser


@dataclass(frozen=True)
class Guidance:
    """Settings of classifier-free guidance, in the official names where there are any.

    Attributes:
        scale: 1 is none; None is the model's default.
        apg_scale: 1 keeps only the part orthogonal to the conditional estimate, 0 is plain.
        interval: Noise levels with guidance, both ends included.
        norm_threshold: Largest norm of the guidance of a clip; 0 is no limit.
        rescale: Share of a rescale to the deviation of the conditional velocity.
    """

    scale: float | None = None
    apg_scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    norm_threshold: float = 0.0
    rescale: float = 0.0


@dataclass(frozen=True)
class GuidedVelocity:
    """Callable for `sample`: (x, t) to velocity.

    Attributes:
        denoiser: The model.
        conditioning: Of the prompts.
        negative: Of the negative prompts; None for the empty one.
        guidance: Settings.
        mask: True on frames that exist, (B, T).
        keep: True on given frames, (B, T); None for none.
        known: Given latents, zero elsewhere, (B, C, T).
    """

    denoiser: Denoiser
    conditioning: Conditioning
    negative: Conditioning | None
    guidance: Guidance
    mask: Tensor
    keep: Tensor | None = None
    known: Tensor | None = None

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity, (B, C, T)."""
        g = self.guidance
        assert g.scale is not None, "the pipeline fills in the model's default"
        if not is_active(t, g.interval, guidance_scale=g.scale):
            return self._plain(x, t, self.conditioning, 1).to(x.dtype)
        other = (
            self.conditioning.unconditional() if self.negative is None else self.negative.negative()
        )
        # the unconditional half keeps its duration embedding, as the official code does
        both = self.conditioning + Conditioning(
            other.cross, other.mask, self.conditioning.global_cond
        )
        conditional, unconditional = self._plain(x, t, both, 2).float().chunk(2)
        return guided_velocity(
            x, t, conditional=conditional, unconditional=unconditional,
            guidance_scale=g.scale, apg_scale=g.apg_scale, norm_threshold=g.norm_threshold,
            scale_phi=g.rescale, mask=self.mask,
        )  # fmt: skip

    def _plain(self, x: Tensor, t: Tensor, conditioning: Conditioning, copies: int) -> Tensor:
        def copied(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.repeat(copies, *[1] * (value.ndim - 1))

        mask = None if bool(self.mask.all()) else self.mask
        return self.denoiser.velocity(
            x.repeat(copies, 1, 1), t.repeat(copies), conditioning,
            keep=copied(self.keep), known=copied(self.known), mask=copied(mask),
        )  # fmt: skip
