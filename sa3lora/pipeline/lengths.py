"""How long a generation is: requested seconds, computed latents, real frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sa3lora.models.config import ModelConfig

#: Seconds computed beyond the requested duration, as the official code does.
HEADROOM_S = 6.0


@dataclass(frozen=True)
class Lengths:
    """Lengths of one batch.

    Attributes:
        num_samples: Samples computed for every clip of the batch.
        num_frames: Latent frames computed.
        effective: Frames that each requested duration takes, (B,), float32.
        mask: True on frames that exist for a clip, (B, T).
        durations_s: As requested.
    """

    num_samples: int
    num_frames: int
    effective: Tensor
    mask: Tensor
    durations_s: tuple[float, ...]

    def cut(self, index: int, sample_rate: int) -> int:
        """Samples that clip `index` is cut to."""
        return int(self.durations_s[index] * sample_rate)


def plan_lengths(
    durations_s: Sequence[float], config: ModelConfig, *, headroom_s: float = HEADROOM_S
) -> Lengths:
    """Work out what is computed for the given durations.

    Raises:
        ValueError: If a duration is not positive, or more than the model was made for.
    """
    rate, ratio = config.sample_rate, config.downsampling_ratio
    for duration_s in durations_s:
        # a duration written with two decimals may be a rounded limit
        if not 1 / rate <= duration_s <= config.max_duration_s + 0.01:
            raise ValueError(
                f"duration must be above 0 and at most {config.max_duration_s:.2f} s for this "
                f"model, got {duration_s:g}"
            )
    multiple = ratio * config.same.encoder.length_multiple
    wanted = int((max(durations_s) + headroom_s) * rate)
    longest = max(math.ceil(max(durations_s) * rate / ratio) * ratio, config.sample_size)
    num_samples = min(-(-wanted // multiple) * multiple, longest)
    num_frames = num_samples // ratio
    effective = torch.tensor([math.ceil(int(d * rate) / ratio) for d in durations_s]).float()
    real = (effective + int(headroom_s * rate / ratio)).clamp(max=num_frames)
    mask = torch.arange(num_frames) < real[:, None]
    return Lengths(num_samples, num_frames, effective, mask, tuple(durations_s))
