"""Layers of the small CLAP: what is absent has no influence."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from sa3lora.models.clap_layers import Block, ConvBlock, masked_mean


def _mask(real, total):
    return torch.arange(total)[None] < real


def test_a_masked_mean_sees_real_positions_only():
    x = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert masked_mean(x, _mask(2, 3)).item() == 2.0


def test_a_block_ignores_absent_tokens():
    torch.manual_seed(0)
    block = Block(16, 4, 0.1).eval()
    x = torch.randn(1, 6, 16)
    changed = torch.cat([x[:, :4], torch.randn(1, 2, 16)], dim=1)
    mask = _mask(4, 6)
    assert_close(block(x, mask)[:, :4], block(changed, mask)[:, :4])


def test_a_convolution_gives_the_same_frames_with_and_without_padding():
    torch.manual_seed(0)
    conv = ConvBlock(1, 8, stride=(2, 2))
    x = torch.randn(1, 1, 8, 9)
    padded = torch.nn.functional.pad(x, (0, 7))
    alone, mask = conv(x, _mask(9, 9))
    together, padded_mask = conv(padded, _mask(9, 16))
    assert mask.shape == (1, 5)
    assert padded_mask.sum() == 5
    assert_close(together[..., :5], alone)
    assert not together[..., 5:].any()
