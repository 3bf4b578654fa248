"""Blocks of the transformer compiled, each from the same code, so that one is compiled for all.

Only training runs them, so that what is looked at between steps asks for no code of its own.
Lengths and numbers of clips are symbols: a batch of another shape needs no new code, but where one
clip is alone or nothing is padded. Packed clips are not for this: where they meet is another list
of numbers in each batch.
"""

from __future__ import annotations

from functools import partial
from types import FunctionType
from typing import Any

import torch

from sa3lora.errors import ModelError
from sa3lora.models.attention import choose_backend
from sa3lora.models.dit import Block, DiffusionTransformer


def compile_blocks(model: DiffusionTransformer) -> None:
    """Compile every block when it is first trained.

    The compiler chooses by itself what is cheap enough to be made again in the backward pass, so
    that `frugal` blocks stop choosing. Blocks that are recomputed whole stay so. What is compiled
    belongs to this model alone and goes with it: torch counts and keeps it by the code of a
    function, and compiles nothing more of a function that was compiled for 8 kinds of input.
    """
    transformer = model.transformer
    # The back-end is a constant of the compiled code; that it is logged once could not be compiled.
    torch.compiler.assume_constant_result(choose_backend.__wrapped__)  # type: ignore[no-untyped-call]
    model.set_recomputation(num_blocks=transformer.num_checkpointed)
    # Dropout draws the numbers that it draws uncompiled.
    options: dict[str, Any] = {"fallback_random": True}
    ours = Block.forward
    forward = FunctionType(ours.__code__.replace(), ours.__globals__, "forward")
    compiled = torch.compile(forward, dynamic=True, options=options)
    transformer.compiled = [partial(compiled, layer) for layer in transformer.layers]


def require_compiler(device: str) -> None:
    """Check, before anything is loaded, that code can be compiled for a device.

    Raises:
        ModelError: If there is no C++ compiler, which code for a CPU needs.
    """
    if device != "cpu":
        return  # what Triton needs comes with it
    from torch._inductor import cpp_builder  # takes a second, which few need
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        cpp_builder.get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise ModelError(
            "train.compile needs a C++ compiler and found none. Install g++ or clang, name one in "
            "the environment variable CXX, or set train.compile=false."
        ) from error
