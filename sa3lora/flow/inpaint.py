"""Which latent frames a model is given and which it makes (keep masks, True = given)."""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

RELEASED_PROBABILITIES: Final = (0.1, 0.8, 0.1)  # segments, full, causal
MAX_SEGMENTS: Final = 10
SPAN_COUNT_WEIGHTS: Final = (4.0, 2.0, 1.0, 1.0)  # of 1, 2, 3 and 4 spans
SPAN_RATIO: Final = (0.2, 1.0)
SPAN_TRIES: Final = 50


def sample_keep_mask(
    lengths: Tensor,
    num_frames: int,
    *,
    probabilities: Sequence[float] = RELEASED_PROBABILITIES,
    generator: torch.Generator,
) -> Tensor:
    """Draw what each training clip is given, by one of four laws.

    "segments" hides 1 to 10 stretches that may overlap, "full" hides all, "causal" keeps a
    beginning, "spans" hides 1 to 4 stretches of 20 to 100 % of the clip that do not overlap.

    Args:
        lengths: Real frames of each clip, silence extension included, (B,), integers.
        num_frames: Frames of the batch, at least the largest length.
        probabilities: Of segments, full, causal, and spans if there are four; they sum to 1.
        generator: Source of all randomness.

    Returns:
        True on given frames, (B, num_frames), on the device of `lengths`. Padding is never given.

    Raises:
        ValueError: If the probabilities are not three or four numbers of sum 1, or a clip is
            longer than the batch.
    """
    chances = [float(p) for p in probabilities]
    bad = len(chances) not in (3, 4) or min(chances) < 0 or not math.isclose(sum(chances), 1)
    if bad:
        raise ValueError(f"probabilities must be 3 or 4 numbers of sum 1, got {chances}")
    counts = [int(n) for n in lengths.tolist()]
    if counts and not 0 <= min(counts) <= max(counts) <= num_frames:
        raise ValueError(f"lengths must lie in [0, {num_frames}], got {counts}")
    keep = torch.zeros(len(counts), num_frames, dtype=torch.bool)
    for row, n in zip(keep, counts, strict=True):
        law = _choose(chances, generator)
        if law == 1 or n == 0:
            continue
        row[:n] = True
        for start, end in _hidden(law, n, generator):
            row[start:end] = False
    return keep.to(lengths.device)


def regions_to_latent_mask(
    regions_s: Sequence[tuple[float, float]],
    *,
    num_samples: int,
    sample_rate: int,
    ratio: int,
    duration_s: float | None = None,
) -> Tensor:
    """Turn stretches of audio to make anew into a mask of given latent frames.

    A frame belongs to a region if its first sample does.

    Args:
        regions_s: Start and end of each region in seconds.
        num_samples: Samples of the audio, padding included.
        sample_rate: Samples per second.
        ratio: Samples per latent frame.
        duration_s: Where the music ends; what follows is made anew. None is the end.

    Returns:
        True on given frames, (num_samples // ratio,).

    Raises:
        ValueError: If a region starts before 0 or does not end after its start.
    """
    first_sample = _first_samples(num_samples, num_frames=num_samples // ratio)
    keep = torch.ones_like(first_sample, dtype=torch.bool)
    for start_s, end_s in regions_s:
        if start_s < 0 or end_s <= start_s:
            raise ValueError(
                f"a region must start at 0 or later and end after its start, "
                f"got {start_s} to {end_s} s"
            )
        start, end = int(start_s * sample_rate), int(end_s * sample_rate)
        keep &= (first_sample < start) | (first_sample >= end)
    if duration_s is not None:
        keep &= first_sample < int(duration_s * sample_rate)
    return keep


def samples_to_latent_mask(
    mask: Tensor,
    *,
    num_samples: int,
    sample_rate: int,
    ratio: int,
    duration_s: float | None = None,
) -> Tensor:
    """Bring a mask of given samples down to latent frames, each taking its first sample.

    Args:
        mask: True or 1 on given samples, (B, N); cut to `num_samples` if longer. A shorter one is
            stretched, as the released code does.
        num_samples: Samples of the audio, padding included.
        sample_rate: Samples per second.
        ratio: Samples per latent frame.
        duration_s: Where the music ends; what follows is made anew. None is the end.

    Returns:
        True on given frames, (B, num_samples // ratio).
    """
    given = mask[:, :num_samples].bool()
    first_sample = _first_samples(given.shape[1], num_frames=num_samples // ratio).to(mask.device)
    keep = given[:, first_sample]
    if duration_s is not None:
        keep = keep & (first_sample < int(duration_s * sample_rate))
    return keep


def _first_samples(num_samples: int, *, num_frames: int) -> Tensor:
    """Nearest-neighbour positions of latent frames among samples."""
    return torch.arange(num_frames, dtype=torch.int64) * num_samples // max(num_frames, 1)


def _hidden(law: int, n: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """Draw the stretches that a law hides in a clip of n frames."""
    if law == 0:
        count = _integer(1, MAX_SEGMENTS, generator)
        stretches = []
        for _ in range(count):
            length = _integer(1, max(1, n // count), generator)
            start = _integer(0, n - length, generator)
            stretches.append((start, start + length))
        return stretches
    if law == 2:
        return [(_integer(0, n, generator), n)]
    return _place_spans(_span_lengths(n, generator), n, generator)


def _span_lengths(n: int, generator: torch.Generator) -> list[int]:
    """Split a share of n frames among 1 to 4 spans of at least one frame."""
    low, high = SPAN_RATIO
    budget = max(1, int((low + (high - low) * _uniform(generator)) * n))
    count = min(1 + _choose(SPAN_COUNT_WEIGHTS, generator), n)
    weights = [_uniform(generator) for _ in range(count)]
    total = max(sum(weights), 1e-12)
    lengths = [max(1, int(budget * weight / total)) for weight in weights]
    lengths[0] += max(0, budget - sum(lengths))
    for i in range(count):
        lengths[i] -= min(max(0, sum(lengths) - budget), lengths[i] - 1)
    return lengths


def _place_spans(
    lengths: Sequence[int], n: int, generator: torch.Generator
) -> list[tuple[int, int]]:
    """Place spans without overlap, the largest first; one that fits nowhere is left out."""
    placed: list[tuple[int, int]] = []
    for length in sorted(lengths, reverse=True):
        tries = (_integer(0, n - length, generator) for _ in range(SPAN_TRIES))
        start = next((s for s in tries if _is_free(s, length, placed)), None)
        if start is None:
            leftmost = range(n - length + 1)
            start = next((s for s in leftmost if _is_free(s, length, placed)), None)
        if start is not None:
            placed.append((start, start + length))
    return placed


def _is_free(start: int, length: int, placed: Sequence[tuple[int, int]]) -> bool:
    return all(start + length <= low or start >= high for low, high in placed)


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """Draw from low to high, both included."""
    draw = torch.randint(low, high + 1, (1,), generator=generator, device=generator.device)
    return int(draw.item())


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator, device=generator.device).item())


def _choose(weights: Sequence[float], generator: torch.Generator) -> int:
    """Draw an index with chances in proportion to the weights."""
    chances = torch.tensor(weights, dtype=torch.float64, device=generator.device)
    return int(torch.multinomial(chances, 1, generator=generator).item())
