"""How much memory a training step takes, and what is recomputed so that it fits.

Activations are counted tensor by tensor for one block of the transformer: what autograd keeps of
the attention, of the gated feed-forward layer and of the inpaint conditioning.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sa3lora.models.config import DitConfig

Wanted = str | bool | float

# Embedded context, first and last projections and the loss, in widths of a token.
_OUTSIDE_BLOCKS = 4
# Buffers of the libraries that multiply matrices, as measured with the embedded model on a CPU.
_WORKSPACE_BYTES = 24_000_000
# Share of blocks that `lean` recomputes beside everything that is cheap.
LEAN_SHARE = 0.2
# What an allocator loses, and what else needs room beside the step.
_USABLE = 0.85


@dataclass(frozen=True)
class Recomputation:
    """What a backward pass makes again instead of keeping it.

    Attributes:
        num_blocks: Blocks that keep their input alone.
        frugal: Whether the others keep outputs of matrix products alone.
    """

    num_blocks: int = 0
    frugal: bool = False

    def describe(self, depth: int) -> str:
        """Say it for the plan."""
        if self.num_blocks >= depth:
            return "every block is recomputed"
        cheap = "norms, heads and gates are recomputed" if self.frugal else ""
        blocks = f"{self.num_blocks} of {depth} blocks are recomputed" if self.num_blocks else ""
        return ", ".join(part for part in (blocks, cheap) if part) or "nothing is recomputed"


@dataclass(frozen=True)
class StepMemory:
    """Memory of a step in bytes as a function of its batch.

    Attributes:
        dit: Sizes of the transformer.
        num_base: Numbers in the frozen weights.
        num_trained: Numbers in the adapter.
        base_bytes: Bytes of one frozen number, on average.
        compute: Type of the activations.
        magnitudes: Whether the adapter's type keeps outputs for its magnitudes.
        context_tokens: Of the prompt and the duration.
        unpacking: Bytes beside them while a weight that is held in few bits is multiplied with.
        trained_bytes: Of one number in the adapter with its gradient and what the optimizer keeps
            of it, on average; that of plain AdamW if not told.
    """

    dit: DitConfig
    num_base: int
    num_trained: int
    base_bytes: float
    compute: torch.dtype
    magnitudes: bool = False
    context_tokens: int = 257
    unpacking: int = 0
    trained_bytes: float = 16.0

    @property
    def weights(self) -> int:
        """Frozen weights, and the one that is made of few bits at a time."""
        return round(self.num_base * self.base_bytes) + self.unpacking

    @property
    def trained(self) -> int:
        """Adapter, its gradient and its optimizer."""
        return round(self.num_trained * self.trained_bytes)

    def activations(
        self, how: Recomputation, *, num_frames: int, batch: int, depth: int | None = None
    ) -> int:
        """Give what lives at the start of the backward pass."""
        depth = self.dit.depth if depth is None else depth
        kept = self._block(how.frugal, num_frames=num_frames, batch=batch)
        whole = min(how.num_blocks, depth)
        inputs = self._tokens(num_frames, batch) * self.dit.embed_dim * self.compute.itemsize
        # one recomputed block at a time is complete, if the others do not take as much already
        full = self._block(False, num_frames=num_frames, batch=batch) if whole else 0
        rest = max((depth - whole) * kept, full)
        passing = self._passing(num_frames=num_frames, batch=batch)
        return round(rest + whole * inputs + passing) + _WORKSPACE_BYTES

    def total(self, how: Recomputation, *, num_frames: int, batch: int) -> int:
        """Give everything."""
        acts = self.activations(how, num_frames=num_frames, batch=batch)
        return self.weights + self.trained + acts

    def _block(self, frugal: bool, *, num_frames: int, batch: int) -> float:
        """Count what autograd keeps of one block."""
        maps = 2 if self.dit.differential else 1
        half = self.compute.itemsize < 4
        inner = self.dit.ff_mult
        tokens, context = self._tokens(num_frames, batch), batch * self.context_tokens
        local = batch * num_frames
        # in units of the width: qkv, attention, its projection; q and so on of the cross attention;
        # residual stream before each branch; projection and result of the feed-forward layer
        of_token = (2 * maps + 1) + maps + 1 + 2 * maps + 1 + 3 + 2 * inner + 1
        of_context, of_local = maps + 1.0, 2.0
        wide = fixed = 0.0
        if not frugal:
            # normed and turned heads, merged heads twice, the gate and its product
            of_token += 4 * maps + 2 + 2 * inner
            of_context += 2 * maps
            # float32 whatever computes: each norm before its gain, and a half input converted
            wide = 6.0 if half else 3.0
        if self.magnitudes:
            of_token += 1
            of_local += 1
            if not frugal and maps > 1:  # outputs of which else only copies are kept
                of_token += (2 * maps + 1) + maps
                of_context += maps + 1
            # products of weight and A for the norms, float32: by fan_out, most of the adapter
            fixed = 0.8 * 4 * self.num_trained / self.dit.depth
        numbers = tokens * of_token + context * of_context + local * of_local
        width = self.dit.embed_dim
        return width * (numbers * self.compute.itemsize + tokens * wide * 4) + fixed

    def _tokens(self, num_frames: int, batch: int) -> int:
        return batch * (num_frames + self.dit.num_memory_tokens)

    def _passing(self, *, num_frames: int, batch: int) -> float:
        """Count what is kept outside of blocks, and what a gate's backward pass makes at a time."""
        units = _OUTSIDE_BLOCKS + 4 * self.dit.ff_mult
        return self._tokens(num_frames, batch) * self.dit.embed_dim * units * self.compute.itemsize


def choose_recomputation(
    wanted: Wanted,
    memory: StepMemory,
    *,
    num_frames: int,
    batch: int,
    free: int | None,
    bit_exact: bool = False,
) -> Recomputation:
    """Resolve `train.checkpointing`.

    Args:
        wanted: `auto`, `fast` or False, `lean`, True, or a share of blocks.
        memory: Of the run.
        num_frames: Frames of a clip of the largest batch.
        batch: Clips in it.
        free: Bytes that the device has free, None where it does not tell: then `auto` recomputes
            every block.
        bit_exact: `auto` may only choose what gives the same gradients to the last bit: whole
            blocks. What is free changes from start to start, and a resumed run must not.

    Returns:
        For `auto` the least recomputation whose estimate fits into 85 % of what is free; all of it
        where none fits.
    """
    depth = memory.dit.depth
    if wanted == "fast" or wanted is False:
        return Recomputation()
    lean = Recomputation(_blocks(LEAN_SHARE, depth), frugal=True)
    if wanted == "lean":
        return lean
    if wanted is True:
        return Recomputation(depth)
    if wanted != "auto":
        return Recomputation(_blocks(float(wanted), depth), frugal=True)
    first = 1 if bit_exact else 0
    steps = [Recomputation(k, frugal=not bit_exact) for k in range(first, depth + 1)]
    for how in [Recomputation(), *steps]:
        if (
            free is not None
            and memory.total(how, num_frames=num_frames, batch=batch) <= _USABLE * free
        ):
            return how
    return steps[-1]


def _blocks(share: float, depth: int) -> int:
    return min(depth, max(1, round(share * depth))) if share > 0 else 0


def free_memory(device: torch.device) -> int | None:
    """Give the bytes that a run may still take on a device; None if it does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu" and sys.platform == "linux":
        found = Path("/proc/meminfo").read_text(encoding="ascii").split("MemAvailable:")[1]
        return int(found.split()[0]) * 1024
    return None


def largest_fit(
    memory: StepMemory, budget: int, *, hows: Sequence[Recomputation], limit: int
) -> tuple[Recomputation, int] | None:
    """Find the most frames that fit a budget with a batch of one, and the least recomputation.

    Args:
        memory: Of the model; its own weights count.
        budget: Bytes of the card.
        hows: What may be recomputed, least first.
        limit: Longest clip of the model.

    Returns:
        What is recomputed, and frames in all (beyond `limit` they are several clips); None if
        nothing fits.
    """
    best: tuple[Recomputation, int] | None = None
    for how in hows:
        one = memory.total(how, num_frames=1, batch=1)
        if one > _USABLE * budget:
            continue
        clip = memory.total(how, num_frames=limit, batch=1)
        slope = (clip - one) / max(limit - 1, 1)
        frames = int((_USABLE * budget - one) / slope) + 1
        if frames >= limit:
            return how, frames
        if best is None or frames > best[1]:
            best = how, frames
    return best


def wants_magnitudes(adapter_type: str) -> bool:
    """Tell whether a type keeps a layer's output for the gradient of its magnitudes."""
    return adapter_type.startswith(("dora", "bora"))
