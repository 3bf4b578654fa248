from __future__ import annotations

import pytest
import torch

from sa3lora.models.upload import pinned, upload


def test_what_lies_there_already_is_itself() -> None:
    tensor = torch.randn(3)
    assert upload(tensor, torch.device("cpu")) is tensor
    assert pinned(tensor, torch.device("cpu")) is tensor


def test_another_place_gets_the_same_shape_and_type() -> None:
    sent = upload(torch.zeros(2, 3, dtype=torch.bool), torch.device("meta"))
    assert (sent.device.type, sent.shape, sent.dtype) == ("meta", (2, 3), torch.bool)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pins memory for CUDA")
def test_a_gpu_gets_the_same_values_without_being_waited_for() -> None:
    device = torch.device("cuda")
    tensor = torch.randn(1000)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sent = upload(tensor, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(sent.cpu(), tensor)
