from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from sa3lora.models import Conditioning, Denoiser, ModelSource
from sa3lora.models.layers import RotaryEmbedding
from sa3lora.models.packed import Packing

_LENGTHS = (7, 20, 1, 12)
_MASK = torch.arange(20) < torch.tensor(_LENGTHS)[:, None]


def _packing(memory: int = 3) -> Packing:
    return Packing.of(_MASK, num_memory=memory, num_context=5)


def _inputs(source: ModelSource) -> dict[str, Tensor]:
    generator = Generator().manual_seed(0)
    shape = (len(_LENGTHS), source.config.latent_channels, 20)
    x = torch.randn(shape, generator=generator)
    keep = torch.rand(shape[0], 20, generator=generator) < 0.4
    t = torch.rand(shape[0], generator=generator)
    return {"x": x, "t": t, "keep": keep, "known": x * keep[:, None]}


def _condition(source: ModelSource, denoiser: Denoiser, rows: slice = slice(None)) -> Conditioning:
    generator = Generator().manual_seed(1)
    width = source.config.cond_dim
    text = [torch.randn(n + 1, width, generator=generator) for n in range(len(_LENGTHS))]
    seconds = torch.tensor([0.5, 2.0, 0.1, 1.0])
    return denoiser.condition(text[rows], seconds[rows])


def test_frames_survive_packing_and_padding_comes_back_as_zeros() -> None:
    x = torch.randn(4, 20, 6, generator=Generator().manual_seed(0))
    packed = _packing().pack(x)
    assert packed.shape == (1, sum(_LENGTHS), 6)
    assert torch.equal(_packing().unpack(packed), x * _MASK[..., None])


def test_every_clip_has_memory_positions_and_values_of_its_own() -> None:
    packing = _packing()
    frames = torch.arange(1.0, sum(_LENGTHS) + 1)[None, :, None]
    tokens = packing.with_memory(frames, torch.zeros(3, 1))
    assert torch.equal(packing.frames(tokens), frames)
    assert torch.equal(packing.at_frames(frames), tokens), "memory tokens are zeros here"
    rotary = RotaryEmbedding(64)
    cos, _ = packing.rotation(rotary)
    spread = packing.spread(torch.arange(4.0)[:, None])[0, :, 0]
    start = 0
    for clip, length in enumerate(_LENGTHS):
        stop = start + 3 + length
        assert bool((spread[start:stop] == clip).all())
        assert torch.equal(cos[start:stop], rotary(3 + length)[0])
        start = stop
    assert start == tokens.shape[1]


@torch.no_grad()
def test_a_packed_clip_computes_what_it_computes_padded_and_alone(
    source: ModelSource, denoiser: Denoiser
) -> None:
    inputs = _inputs(source)
    conditioning = _condition(source, denoiser)
    packed = denoiser.velocity(conditioning=conditioning, mask=_MASK, packed=True, **inputs)
    padded = denoiser.velocity(conditioning=conditioning, mask=_MASK, **inputs)
    assert_close(packed, padded * _MASK[:, None], rtol=1e-4, atol=1e-5)
    for row, length in enumerate(_LENGTHS):
        rows = slice(row, row + 1)
        own = {name: value[rows] for name, value in inputs.items()}
        own |= {name: own[name][..., :length] for name in ("x", "keep", "known")}
        alone = denoiser.velocity(conditioning=_condition(source, denoiser, rows), **own)
        assert_close(packed[rows, :, :length], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_nothing_is_computed_for_padding(source: ModelSource, denoiser: Denoiser) -> None:
    seen: list[int] = []

    def count(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append(inputs[0].shape[0] * inputs[0].shape[1])

    handle = denoiser.model.transformer.project_out.register_forward_hook(count)
    try:
        for packed in (False, True):
            denoiser.velocity(
                conditioning=_condition(source, denoiser), mask=_MASK, packed=packed,
                **_inputs(source),
            )  # fmt: skip
    finally:
        handle.remove()
    assert seen == [_MASK.numel(), sum(_LENGTHS)]
