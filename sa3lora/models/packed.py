"""Clips of unequal length end to end in one sequence, each as if it were alone.

Nothing is computed for padding, because there is none. Every clip has memory tokens, rotary
positions, modulation and context of its own, and attends to nothing but itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from sa3lora.models.attention import Spans
from sa3lora.models.layers import RotaryEmbedding
from sa3lora.models.upload import upload


@dataclass(frozen=True)
class Packing:
    """Where each clip of a batch lies in a packed sequence.

    Tokens are, clip after clip, the memory tokens and then the frames. Frames are the same without
    the memory tokens.

    Attributes:
        lengths: Real frames of each clip.
        num_memory: Memory tokens before the frames of every clip.
        num_context: Prompt and duration tokens of every clip.
        num_padded: Frames of each row of the padded batch.
        device: Where the indices lie.
    """

    lengths: tuple[int, ...]
    num_memory: int
    num_context: int
    num_padded: int
    device: torch.device

    @classmethod
    def of(
        cls, mask: Tensor, *, num_memory: int, num_context: int, device: torch.device | None = None
    ) -> Packing:
        """Describe a padded batch by its mask (B, T), True on a prefix of every row.

        The mask is best on the host, where it is read without waiting for a GPU; `device` is then
        where the batch lies.
        """
        lengths = tuple(int(n) for n in mask.sum(dim=1).tolist())
        return cls(lengths, num_memory, num_context, mask.shape[1], device or mask.device)

    @cached_property
    def tokens(self) -> Spans:
        """Spans of the clips' tokens."""
        return Spans.of([self.num_memory + n for n in self.lengths], self.device)

    @cached_property
    def contexts(self) -> Spans:
        """Spans of the clips' contexts."""
        return Spans.of([self.num_context] * len(self.lengths), self.device)

    def pack(self, x: Tensor) -> Tensor:
        """Take the real frames of (B, T, C) end to end, (1, frames, C)."""
        return x.flatten(0, 1)[self._padded_frames][None]

    def unpack(self, x: Tensor) -> Tensor:
        """Put frames (1, frames, C) back into rows, (B, T, C), 0 in padding."""
        rows = x.new_zeros(len(self.lengths) * self.num_padded, x.shape[2])
        rows = rows.index_copy(0, self._padded_frames, x[0])
        return rows.view(len(self.lengths), self.num_padded, -1)

    def with_memory(self, frames: Tensor, memory: Tensor) -> Tensor:
        """Put memory tokens (M, D) before the frames (1, frames, D) of every clip."""
        pieces = []
        for clip in torch.split(frames[0], list(self.lengths)):
            pieces += [memory, clip]
        return torch.cat(pieces)[None]

    def frames(self, x: Tensor) -> Tensor:
        """Take the frames (1, frames, D) out of tokens."""
        return x[:, self._frame_tokens]

    def at_frames(self, frames: Tensor) -> Tensor:
        """Put frames (1, frames, D) among zeros for the memory tokens, (1, tokens, D)."""
        tokens = frames.new_zeros(1, sum(self.tokens.lengths), frames.shape[2])
        return tokens.index_copy(1, self._frame_tokens, frames)

    def spread(self, per_clip: Tensor) -> Tensor:
        """Give every token the values (B, D) of its clip, (1, tokens, D)."""
        return per_clip[self._clip_of_token][None]

    def rotation(self, embedding: RotaryEmbedding) -> tuple[Tensor, Tensor]:
        """Rotary positions that begin anew with every clip."""
        cos, sin = embedding(self.tokens.longest)
        return cos[self._positions], sin[self._positions]

    @cached_property
    def _padded_frames(self) -> Tensor:
        rows = [torch.arange(n) + row * self.num_padded for row, n in enumerate(self.lengths)]
        return upload(torch.cat(rows), self.device)

    @cached_property
    def _frame_tokens(self) -> Tensor:
        starts = [0, *accumulate(self.tokens.lengths[:-1])]
        places = [
            torch.arange(n) + start + self.num_memory
            for start, n in zip(starts, self.lengths, strict=True)
        ]
        return upload(torch.cat(places), self.device)

    @cached_property
    def _clip_of_token(self) -> Tensor:
        counts = torch.tensor(self.tokens.lengths)
        clips = torch.arange(len(counts)).repeat_interleave(counts)
        return upload(clips, self.device)

    @cached_property
    def _positions(self) -> Tensor:
        positions = torch.cat([torch.arange(n) for n in self.tokens.lengths])
        return upload(positions, self.device)
