from __future__ import annotations

import pytest
import torch

from sa3lora.cli.options import Device, Dtype, resolve_device, resolve_dtype
from sa3lora.errors import UsageError


def only(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_best_device(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, best: str
) -> None:
    only(monkeypatch, cuda=cuda, mps=mps)
    assert resolve_device(Device.auto) == best


def test_a_device_that_is_not_there_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, cuda=False, mps=True)
    assert resolve_device(Device.cpu) == "cpu"
    with pytest.raises(UsageError, match=r"--device cuda: .* It can use mps, cpu\."):
        resolve_device(Device.cuda)


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        (Dtype.auto, "cuda", torch.float16),
        (Dtype.auto, "cpu", torch.float32),
        (Dtype.auto, "mps", torch.float32),
        (Dtype.bfloat16, "cpu", torch.bfloat16),
        (Dtype.float32, "cuda", torch.float32),
    ],
)
def test_precision_follows_the_device_unless_it_is_given(
    dtype: Dtype, device: str, expected: torch.dtype
) -> None:
    assert resolve_dtype(dtype, device=device) is expected
