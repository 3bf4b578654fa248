from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from sa3lora.errors import ModelError
from sa3lora.models.attention import (
    Padding,
    Spans,
    attention,
    band_attention,
    choose_backend,
    packed_attention,
)


def qkv(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]


def dense(query: Tensor, key: Tensor, value: Tensor, *, window: int) -> Tensor:
    place = torch.arange(query.shape[2])
    near = (place[:, None] - place).abs() <= window
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores.masked_fill(~near, -torch.inf).softmax(dim=-1) @ value


@pytest.mark.parametrize("window", [1, 5, 17])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 17, 20, 21, 68, 69, 150])
def test_band_attention_equals_dense_masked_attention(length: int, window: int) -> None:
    q, k, v = qkv(2, 3, length, 8, dtype=torch.float64)
    assert_close(band_attention(q, k, v, window=window), dense(q, k, v, window=window))


def test_band_attention_has_the_gradient_of_dense_attention() -> None:
    ours = [x.requires_grad_() for x in qkv(1, 2, 23, 8, dtype=torch.float64)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    band_attention(*ours, window=3).square().sum().backward()
    dense(*theirs, window=3).square().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a.grad, b.grad)


class LargestTensor(TorchDispatchMode):
    """Remember the size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else (out,):
            if isinstance(item, Tensor):
                self.numel = max(self.numel, item.numel())
        return out


def test_band_attention_needs_memory_linear_in_length() -> None:
    largest = []
    for length in (2000, 20000):
        with LargestTensor() as seen:
            band_attention(*qkv(1, 2, length, 4), window=17)
        largest.append(seen.numel)
    assert largest[1] < 10.5 * largest[0]
    assert largest[1] < 20000 * 150  # an N x N mask would be 20000 * 20000


@pytest.mark.parametrize("lengths", [(9, 4), (9, 9), (1, 9)])
def test_padded_positions_are_as_if_absent(lengths: tuple[int, int]) -> None:
    q, k, v = qkv(2, 3, 9, 8)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    loud = [torch.where(mask[:, None, :, None], x, 1e4) for x in (k, v)]
    out = attention(q, *loud, Padding.of(mask, q.device))
    for row, n in enumerate(lengths):
        alone = attention(*(x[row : row + 1, :, :n] for x in (q, k, v)))
        assert_close(out[row : row + 1, :, :n], alone)


def by_sequence(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, *rest: object) -> Tensor:
    """Stand in for a packed kernel: (tokens, H, d), one sequence after the other."""
    parts = []
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        one = [x[start:stop].transpose(0, 1)[None] for x in (q, k, v)]
        parts.append(F.scaled_dot_product_attention(*one)[0].transpose(0, 1))
    return torch.cat(parts)


def test_packing_for_varlen_kernels_equals_masking(monkeypatch: pytest.MonkeyPatch) -> None:
    from sa3lora.models.attention import _packed

    flash = types.ModuleType("flash_attn")
    flash.flash_attn_varlen_func = by_sequence  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", flash)
    q, k, v = qkv(3, 2, 7, 8)
    mask = torch.arange(7) < torch.tensor([7, 2, 5])[:, None]
    padding = Padding.of(mask, q.device)
    real = mask[:, None, :, None]
    packed = _packed(q, k, v, padding, "flash")
    assert_close(packed * real, attention(q, k, v, padding) * real)


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    q, k, v = qkv(1, 1, 4, 8)
    for _ in range(3):
        attention(q, k, v, Padding.of(torch.ones(1, 4, dtype=torch.bool), q.device))
    lines = [r.getMessage() for r in caplog.records if "back-end" in r.getMessage()]
    assert lines == ["attention back-end: sdpa (cpu, torch.float32)"]


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ("flash", r"SA3LORA_ATTENTION=flash cannot run on cpu in torch.float32; .*: sdpa"),
        ("varlen", r"SA3LORA_ATTENTION=varlen cannot run on cpu"),
        ("fast", r"SA3LORA_ATTENTION=fast is unknown; use one of auto, flash, varlen, sdpa"),
    ],
)
def test_a_back_end_that_cannot_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, forced: str, message: str
) -> None:
    monkeypatch.setenv("SA3LORA_ATTENTION", forced)
    with pytest.raises(ModelError, match=message):
        choose_backend("cpu", torch.float32)


def test_loading_a_model_refuses_an_impossible_back_end(
    monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    monkeypatch.setenv("SA3LORA_ATTENTION", "flash")
    with pytest.raises(ModelError, match="flash cannot run on cpu"):
        source.load_denoiser()


def test_weights_that_wait_on_the_cpu_have_the_back_end_of_where_they_compute(
    monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    monkeypatch.setenv("SA3LORA_ATTENTION", "flash")
    with pytest.raises(ModelError, match=r"flash cannot run on cuda in torch\.float32"):
        source.load_denoiser(device="cpu", runs_on="cuda:0")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_back_ends_agree_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, make_run: Callable[[str], Tensor]
) -> None:
    reference = make_run("sdpa")
    for name in ("varlen", "flash"):
        try:
            choose_backend("cuda", dtype, name)
        except ModelError:
            continue
        assert_close(make_run(name), reference, atol=4e-3, rtol=2e-2)


@pytest.fixture
def make_run(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> Callable[[str], Tensor]:
    def run(name: str) -> Tensor:
        monkeypatch.setenv("SA3LORA_ATTENTION", name)
        choose_backend.cache_clear()
        q, k, v = qkv(2, 4, 100, 64, dtype=dtype, device="cuda")
        mask = torch.arange(100, device="cuda") < torch.tensor([[100], [37]], device="cuda")
        return attention(q, k, v, mask) * mask[:, None, :, None]

    return run


def test_packed_pieces_attend_to_nothing_but_their_own_keys() -> None:
    queries = Spans.of([5, 1, 7], torch.device("cpu"))
    keys = Spans.of([3, 3, 3], torch.device("cpu"))
    query = qkv(1, 2, 13, 8)[0]
    _, key, value = qkv(1, 2, 9, 8)
    out = packed_attention(query, key, value, queries=queries, keys=keys)
    for start, stop, n in ((0, 5, 0), (5, 6, 1), (6, 13, 2)):
        piece = [x[:, :, 3 * n : 3 * n + 3] for x in (key, value)]
        assert torch.equal(out[:, :, start:stop], attention(query[:, :, start:stop], *piece))


def test_under_autocast_packed_attention_computes_in_its_type_as_plain_attention_does() -> None:
    q, k, v = qkv(1, 2, 6, 8)
    whole = Spans.of([6], torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        packed = packed_attention(q, k, v, queries=whole, keys=whole)
        plain = attention(q, k, v)
    assert packed.dtype == plain.dtype == torch.bfloat16
    assert torch.equal(packed, plain)
