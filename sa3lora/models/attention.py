"""Attention with three back-ends that agree, and band attention that is linear in length.

`SA3LORA_ATTENTION` = `auto`, `flash`, `varlen` or `sdpa` forces the back-end. In a padded batch the
padded keys are truly absent on each of them: real softmax masking on SDPA, packed sequences on the
other two.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from sa3lora.errors import ModelError
from sa3lora.models.upload import upload

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "flash", "varlen", "sdpa")
_HALF = (torch.float16, torch.bfloat16)


def attention(query: Tensor, key: Tensor, value: Tensor, padding: Padding | None = None) -> Tensor:
    """Scaled dot-product attention; padded positions are as if they were not there.

    Args:
        query: (B, H, S, d).
        key: (B, H, L, d).
        value: (B, H, L, d).
        padding: Which of the L positions are real; needs S = L. Outputs of padded queries mean
            nothing.

    Returns:
        (B, H, S, d).
    """
    if padding is None:
        return F.scaled_dot_product_attention(query, key, value)
    backend = choose_backend(query.device.type, query.dtype)
    if backend == "sdpa":
        real = padding.mask[:, None, None, :]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=real)
    return _packed(query, key, value, padding, backend)


@lru_cache
def choose_backend(device_type: str, dtype: torch.dtype, forced: str | None = None) -> str:
    """Name the back-end for padded batches and log the choice once.

    Raises:
        ModelError: If a forced back-end is unknown or cannot run here.
    """
    wanted = forced or os.environ.get("SA3LORA_ATTENTION", "auto")
    if wanted not in BACKENDS:
        raise ModelError(f"SA3LORA_ATTENTION={wanted} is unknown; use one of {', '.join(BACKENDS)}")
    possible = ["sdpa"]
    if device_type == "cuda" and dtype in _HALF and torch.cuda.get_device_capability() >= (8, 0):
        if importlib.util.find_spec("torch.nn.attention.varlen"):
            possible.insert(0, "varlen")
        if importlib.util.find_spec("flash_attn"):
            possible.insert(0, "flash")
    if wanted != "auto" and wanted not in possible:
        raise ModelError(
            f"SA3LORA_ATTENTION={wanted} cannot run on {device_type} in {dtype}; "
            f"possible here: {', '.join(possible)}"
        )
    chosen = possible[0] if wanted == "auto" else wanted
    logger.info("attention back-end: %s (%s, %s)", chosen, device_type, dtype)
    return chosen


@dataclass(frozen=True)
class Spans:
    """Pieces of a sequence that lie end to end.

    Attributes:
        lengths: Positions of each piece.
        bounds: Where each begins, and the end of the last, (pieces + 1,), int32.
        longest: Positions of the longest piece.
    """

    lengths: tuple[int, ...]
    bounds: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Spans:
        """Lay pieces of these lengths end to end."""
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(tuple(lengths), upload(bounds, device), max(lengths))


@dataclass(frozen=True)
class Padding:
    """Which positions of padded rows are real.

    Attributes:
        mask: True on real positions, (B, S), where the rows lie.
        known: The same, where it was given: on the host it is read without waiting for a GPU.
    """

    mask: Tensor
    known: Tensor

    @classmethod
    def of(cls, mask: Tensor, device: torch.device) -> Padding:
        """Take a mask (B, S) that lies with the rows or on the host."""
        return cls(upload(mask, device), mask)

    @cached_property
    def spans(self) -> Spans:
        """Real positions of the rows, end to end."""
        return Spans.of(self.known.sum(dim=1).tolist(), self.mask.device)

    @cached_property
    def positions(self) -> Tensor:
        """Where the real positions lie among those of all rows."""
        return upload(self.known.flatten().nonzero()[:, 0], self.mask.device)


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, *, queries: Spans, keys: Spans
) -> Tensor:
    """Attend within each piece of a packed sequence and never beyond it.

    Where no varlen kernel runs, pieces are taken one by one, which is exact and no less work.

    Args:
        query: (1, H, S, d).
        key: (1, H, L, d).
        value: (1, H, L, d).
        queries: Pieces of S.
        keys: As many pieces of L; queries of a piece see the keys of the same one.

    Returns:
        (1, H, S, d).
    """
    if torch.is_autocast_enabled(query.device.type):
        # What plain attention does there, and what the kernels below need.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (x.to(dtype) for x in (query, key, value))
    backend = choose_backend(query.device.type, query.dtype)
    if backend == "sdpa":
        pieces = zip(
            torch.split(query, list(queries.lengths), dim=2),
            torch.split(key, list(keys.lengths), dim=2),
            torch.split(value, list(keys.lengths), dim=2),
            strict=True,
        )
        return torch.cat([F.scaled_dot_product_attention(*piece) for piece in pieces], dim=2)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))  # (tokens, H, d)
    return _varlen(q, k, v, queries=queries, keys=keys, backend=backend).transpose(0, 1)[None]


def _packed(query: Tensor, key: Tensor, value: Tensor, padding: Padding, backend: str) -> Tensor:
    """Run self-attention on the real tokens only, packed end to end."""
    batch, heads, length, width = query.shape
    spans, real = padding.spans, padding.positions
    q, k, v = (x.transpose(1, 2).flatten(0, 1)[real] for x in (query, key, value))
    attended = _varlen(q, k, v, queries=spans, keys=spans, backend=backend)  # (tokens, H, d)
    rows = query.new_zeros(batch * length, heads, width).index_copy(0, real, attended)
    return rows.view(batch, length, heads, width).transpose(1, 2)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, *, queries: Spans, keys: Spans, backend: str
) -> Tensor:
    """Run a varlen kernel on (tokens, H, d)."""
    places = (queries.bounds, keys.bounds, queries.longest, keys.longest)
    if backend == "flash":
        from flash_attn import flash_attn_varlen_func

        out: Tensor = flash_attn_varlen_func(query, key, value, *places)
    else:
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(query, key, value, *places)  # type: ignore[assignment]
    return out


def band_attention(query: Tensor, key: Tensor, value: Tensor, *, window: int) -> Tensor:
    """Attend to the keys at most `window` positions away, in memory linear in length.

    Queries are cut into tiles; each tile sees itself and `window` keys on both sides.

    Args:
        query: (B, H, N, d).
        key: (B, H, N, d).
        value: (B, H, N, d).
        window: Largest distance, inclusive.

    Returns:
        (B, H, N, d).
    """
    batch, heads, length, width = query.shape
    tile = 4 * window
    tiles = -(-length // tile)
    spare = tiles * tile - length
    span = tile + 2 * window

    def spans(x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, window, window + spare)).unfold(2, span, tile)
        return padded.permute(0, 2, 1, 4, 3).reshape(batch * tiles, heads, span, width)

    tiled = F.pad(query, (0, 0, 0, spare)).view(batch, heads, tiles, tile, width)
    tiled = tiled.transpose(1, 2).reshape(batch * tiles, heads, tile, width)
    allowed = _band_mask(length, tile=tile, tiles=tiles, window=window, device=query.device)
    allowed = allowed.repeat(batch, 1, 1)[:, None]
    out = F.scaled_dot_product_attention(tiled, spans(key), spans(value), attn_mask=allowed)
    out = out.view(batch, tiles, heads, tile, width).transpose(1, 2)
    return out.reshape(batch, heads, tiles * tile, width)[:, :, :length]


def _band_mask(length: int, *, tile: int, tiles: int, window: int, device: torch.device) -> Tensor:
    """True where a tile's query may see a key, (tiles, tile, tile + 2 window)."""
    start = torch.arange(tiles, device=device)[:, None, None] * tile
    q = start + torch.arange(tile, device=device)[None, :, None]
    k = start - window + torch.arange(tile + 2 * window, device=device)[None, None, :]
    near = (q - k).abs() <= window
    # a padded query keeps its nearest keys, so that no softmax row is empty
    return near & (k >= 0) & ((k < length) | (q >= length))
