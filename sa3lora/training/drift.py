"""How far an adapter has moved the model on prompts that have nothing to do with its style."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sa3lora.flow.schedules import make_schedule
from sa3lora.flow.shifts import SAMPLING_DEFAULT
from sa3lora.models.config import ModelConfig
from sa3lora.models.denoiser import Denoiser
from sa3lora.recipe import read_prompts
from sa3lora.training.validation import evaluating, without_adapters

NEUTRAL_PROMPTS = "neutral"
_MAX_PROMPTS = 16
_STEPS = 8
_KEPT = (0, 2, 4, 6)  # of the steps, from pure noise to little of it
_LONGEST_S = 6.0
_BATCH = 8
_SEED = 2718


@dataclass(frozen=True)
class _Moment:
    """A noisy latent on the base's way and the velocity that the base gives it."""

    prompts: Sequence[str]
    x: Tensor
    t: Tensor
    base: Tensor


class DriftProbe:
    """Fixed moments of the base's own sampling of neutral prompts.

    The base samples each prompt once, in eight Euler steps without guidance from fixed noise; what
    it passes on the way is kept. So the latents are of the base's making, not of the style's clips,
    and the adapter is asked only what it would do there.
    """

    def __init__(
        self, config: ModelConfig, *, text: Callable[[str], Tensor], prompts: Sequence[str] = ()
    ) -> None:
        """Choose the prompts; nothing is computed yet.

        Args:
            config: The model's configuration.
            text: Token embeddings (L, D) of a prompt.
            prompts: By default the packaged neutral ones.
        """
        self._config = config
        self._text = text
        self._prompts = list(prompts) or drift_prompts()
        self._moments: list[_Moment] | None = None

    @torch.no_grad()
    def measure(self, denoiser: Denoiser) -> float:
        """Give the energy of the change of velocity, as a share of the base's energy.

        Both are sums of squares over all moments: 0 is the base, 0.01 moves it by a tenth of its
        length, 1 is as far away as no velocity at all. Draws nothing from global generators.
        """
        with evaluating(denoiser):
            if self._moments is None:
                with without_adapters(denoiser):
                    self._moments = self._sample(denoiser)
            moved = energy = 0.0
            for moment in self._moments:
                base = moment.base.to(denoiser.device)
                x, t = moment.x.to(denoiser.device), moment.t.to(denoiser.device)
                change = self._velocity(denoiser, x, t, moment.prompts) - base
                moved += float(change.double().pow(2).sum())
                energy += float(base.double().pow(2).sum())
        return moved / energy

    def _sample(self, denoiser: Denoiser) -> list[_Moment]:
        frames = self._num_frames()
        schedule = make_schedule(
            _STEPS, length=frames, options=self._config.sampling_shift or SAMPLING_DEFAULT
        ).tolist()
        generator = Generator().manual_seed(_SEED)
        moments = []
        for first in range(0, len(self._prompts), _BATCH):
            prompts = self._prompts[first : first + _BATCH]
            shape = (len(prompts), self._config.latent_channels, frames)
            x = torch.randn(shape, generator=generator).to(denoiser.device)
            for step in range(_STEPS):
                t = torch.full((len(prompts),), schedule[step], device=denoiser.device)
                velocity = self._velocity(denoiser, x, t, prompts)
                if step in _KEPT:
                    moments.append(_Moment(prompts, x.cpu(), t.cpu(), velocity.cpu()))
                x = x + (schedule[step + 1] - schedule[step]) * velocity
        return moments

    def _velocity(self, denoiser: Denoiser, x: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
        seconds = x.new_full((len(prompts),), self._seconds())
        conditioning = denoiser.condition([self._text(prompt) for prompt in prompts], seconds)
        return denoiser.velocity(x, t, conditioning).float()

    def _seconds(self) -> float:
        return min(_LONGEST_S, self._config.max_duration_s)

    def _num_frames(self) -> int:
        frame_s = self._config.downsampling_ratio / self._config.sample_rate
        return max(1, int(self._seconds() / frame_s))


def drift_prompts() -> list[str]:
    """Take prompts evenly from the packaged neutral ones."""
    prompts = read_prompts(NEUTRAL_PROMPTS)
    count = min(_MAX_PROMPTS, len(prompts))
    return [prompts[n * len(prompts) // count] for n in range(count)]
