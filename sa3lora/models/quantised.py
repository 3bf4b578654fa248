"""Frozen linear layers whose weights are held in 8 or 4 bits, through bitsandbytes.

`int8` scales every row by its largest value. `nf4` takes one of 16 values for each number, denser
near 0 as weights are, and scales blocks of 64 by their largest; those scales are held in 8 bits
themselves (Dettmers et al., 2023). Inputs are never quantised: the weight is made again for each
product, forward and backward, and multiplied in the type of the run. So a layer computes exactly
what an ordinary one with that weight does, on any device, and the graph of a model holds no full
weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sa3lora.errors import ModelError

QuantKind = Literal["int8", "nf4"]
QUANT_KINDS: tuple[QuantKind, ...] = get_args(QuantKind)

# What the authors of nf4 chose; scales of blocks lie in blocks of their own.
_BLOCK, _OUTER_BLOCK = 64, 256
_NUM_VALUES, _NUM_SCALES = 16, 256
_PREFIX = "quantised_"
# Names of what holds a weight, in the order of `quantise`.
_PARTS = {
    "int8": ("numbers", "scales"),
    "nf4": ("numbers", "scales", "outer_scales", "mean_scale", "values", "scale_values"),
}


@dataclass(frozen=True)
class QuantForm:
    """How tensors that hold a matrix in few bits become the matrix again.

    Attributes:
        kind: `int8` or `nf4`.
        shape: Of the matrix, (fan_out, fan_in).
    """

    kind: QuantKind
    shape: tuple[int, int]

    def matrix(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Give the matrix that `quantise` made these tensors of, rounded once to a type."""
        library = load_bitsandbytes(self.kind)
        if self.kind == "int8":
            numbers, scales = tensors
            rows: Tensor = library.int8_vectorwise_dequant(numbers, scales)
            return rows.to(dtype)
        numbers, scales, outer, mean, values, scale_values = tensors
        of_scales = library.QuantState(
            absmax=outer, code=scale_values, blocksize=_OUTER_BLOCK, dtype=torch.float32
        )
        state = library.QuantState(
            absmax=scales, shape=torch.Size(self.shape), code=values, blocksize=_BLOCK,
            quant_type="nf4", dtype=dtype, offset=mean, state2=of_scales,
        )  # fmt: skip
        whole: Tensor = library.dequantize_4bit(numbers, state)
        return whole

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors that hold the matrix."""
        fan_out, fan_in = self.shape
        numbers = fan_out * fan_in
        if self.kind == "int8":
            return numbers + 4 * fan_out
        blocks = -(-numbers // _BLOCK)
        outer = -(-blocks // _OUTER_BLOCK)
        return -(-numbers // 2) + blocks + 4 * (outer + 1 + _NUM_VALUES + _NUM_SCALES)

    def unpacking_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that making the matrix takes while it lasts, the matrix included."""
        numbers = self.shape[0] * self.shape[1]
        if self.kind == "int8":  # two products in float32, or one beside what it is rounded to
            return numbers * max(8, 4 + dtype.itemsize)
        return numbers * dtype.itemsize + 4 * -(-numbers // _BLOCK)


class QuantisedWeight(NamedTuple):
    """A matrix in few bits: what holds it, and how it is made again."""

    form: QuantForm
    tensors: tuple[Tensor, ...]


def load_bitsandbytes(kind: str) -> Any:
    """Import what quantises.

    Raises:
        ModelError: If it is not installed.
    """
    try:
        import bitsandbytes.functional as library
    except ImportError as error:
        raise ModelError(
            f"{kind} needs bitsandbytes, which is not installed. Install it with "
            "pip install 'sa3lora[quant]', or take bfloat16."
        ) from error
    return library


def quantise(weight: Tensor, kind: QuantKind) -> QuantisedWeight:
    """Hold a matrix in few bits; from the same numbers the same bits, whatever the device later is.

    Args:
        weight: (fan_out, fan_in), any floating type. It is quantised on the CPU in float32.
        kind: `int8` or `nf4`.
    """
    library = load_bitsandbytes(kind)
    matrix = weight.detach().to("cpu", torch.float32).contiguous()
    form = QuantForm(kind, (matrix.shape[0], matrix.shape[1]))
    if kind == "int8":
        numbers, scales, _ = library.int8_vectorwise_quant(matrix)
        return QuantisedWeight(form, (numbers, scales))
    numbers, state = library.quantize_4bit(
        matrix, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4"
    )
    inner = state.state2
    mean = torch.as_tensor(state.offset, dtype=torch.float32)
    parts = (numbers, state.absmax, inner.absmax, mean, state.code, inner.code)
    return QuantisedWeight(form, tuple(part.clone() for part in parts))


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weight is held in few bits."""

    def __init__(
        self, held: QuantisedWeight, bias: nn.Parameter | None, *, dtype: torch.dtype
    ) -> None:
        """Take a weight that is quantised, and say what type `weight` gives it in."""
        nn.Module.__init__(self)
        self.form = held.form
        self.out_features, self.in_features = held.form.shape
        self.register_parameter("bias", bias)
        for name, tensor in zip(_PARTS[held.form.kind], held.tensors, strict=True):
            # not persistent: the state of a model is that of its published file
            self.register_buffer(_PREFIX + name, tensor, persistent=False)
        self._dtype = dtype

    @property
    def quantised(self) -> QuantisedWeight:
        """The weight as it is held."""
        tensors = tuple(self.get_buffer(_PREFIX + name) for name in _PARTS[self.form.kind])
        return QuantisedWeight(self.form, tensors)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight that products are made with, made anew each time it is asked for."""
        held = self.quantised
        return held.form.matrix(held.tensors, self._dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply as a linear layer does, under autocast in its type."""
        device = x.device.type
        on = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if on else x.dtype
        held = self.quantised
        y: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x.to(dtype), self.bias, held.form, *held.tensors
        )
        return y

    def extra_repr(self) -> str:
        """Say in how many bits."""
        return f"{self.form.kind}, {super().extra_repr()}"


class _Product(torch.autograd.Function):
    """`x W' + b` with a gradient for x alone; what it keeps is the weight in few bits."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, form: QuantForm, *tensors: Tensor
    ) -> Tensor:
        ctx.form = form
        ctx.save_for_backward(*tensors)
        with torch.autocast(x.device.type, enabled=False):
            bias = None if bias is None else bias.to(x.dtype)
            return functional.linear(x, form.matrix(tensors, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        grad_x = grads[0] @ ctx.form.matrix(tensors, grads[0].dtype)
        return grad_x, None, None, *(None for _ in tensors)


def block_layers(root: nn.Module) -> dict[str, nn.Linear]:
    """Map names below a denoiser to the linear layers of its blocks: what is quantised of it.

    What is outside is small, and some of it reads numbers that rounding would blur.
    """
    return {
        name: module
        for name, module in root.named_modules()
        if name.startswith("model.transformer.layers.") and isinstance(module, nn.Linear)
    }


def quantising(
    root: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    kind: QuantKind,
    device: str,
    dtype: torch.dtype,
) -> Iterator[tuple[str, Tensor]]:
    """Quantise the blocks' weights as they come by, one at a time, and pass the rest on.

    Args:
        root: A denoiser on the meta device; its linear layers are replaced.
        tensors: Its weights by name.
        kind: `int8` or `nf4`.
        device: Where the layers go.
        dtype: Type of products.
    """
    layers = block_layers(root)
    for name, tensor in tensors:
        site = name.removesuffix(".weight")
        if site == name or site not in layers:
            yield name, tensor
            continue
        held = quantise(tensor, kind)
        there = QuantisedWeight(held.form, tuple(part.to(device) for part in held.tensors))
        root.set_submodule(site, QuantisedLinear(there, layers[site].bias, dtype=dtype))
