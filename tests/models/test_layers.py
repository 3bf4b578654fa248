from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from sa3lora.models.layers import (
    DynamicTanh,
    FeedForward,
    FourierFeatures,
    RmsNorm,
    RotaryEmbedding,
    WeightNormConv1d,
    inverse_frequencies,
    rotate,
)


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    norm = RmsNorm(8, eps=1e-5)
    norm.gamma.data.uniform_(0.5, 2)
    x = torch.randn(3, 5, 8)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.gamma
    assert_close(norm(x), expected)


def test_rms_norm_in_float32_survives_values_whose_square_is_too_large_for_float16() -> None:
    x = torch.full((1, 4), 1000.0, dtype=torch.float16)
    norm = RmsNorm(4).half()
    assert_close(norm(x), torch.ones(1, 4, dtype=torch.float16))
    assert norm(x).dtype == torch.float16


def test_dynamic_tanh_is_its_formula() -> None:
    layer = DynamicTanh(4)
    layer.gamma.data.uniform_(0.5, 2)
    layer.beta.data.uniform_(-1, 1)
    x = torch.randn(2, 4)
    assert_close(layer(x), layer.gamma * torch.tanh(4.0 * x) + layer.beta)


@pytest.mark.parametrize(("head_dim", "pairs"), [(64, 16), (32, 16), (128, 32)])
def test_half_of_a_head_is_turned_but_at_least_32_channels(head_dim: int, pairs: int) -> None:
    speeds = inverse_frequencies(head_dim)
    assert speeds.shape == (pairs,)
    assert_close(speeds, torch.tensor([10000 ** (-2 * i / (2 * pairs)) for i in range(pairs)]))


def test_turning_keeps_lengths_and_sees_only_distances() -> None:
    rotation = RotaryEmbedding(64)(12)
    q, k = torch.randn(64).expand(12, 64), torch.randn(64).expand(12, 64)
    turned_q, turned_k = rotate(q, rotation), rotate(k, rotation)
    assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))
    assert torch.equal(turned_q[:, 32:], q[:, 32:])
    products = turned_q @ turned_k.T
    for distance in (0, 1, 5):
        along = products.diagonal(distance)
        assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)


def test_turning_pairs_a_channel_with_the_one_16_further() -> None:
    x = torch.zeros(2, 64)
    x[1, 0] = 1.0
    turned = rotate(x, RotaryEmbedding(64)(2))[1]
    assert_close(turned[0], torch.tensor(math.cos(1.0)))
    assert_close(turned[16], torch.tensor(math.sin(1.0)))
    assert turned.count_nonzero() == 2


@pytest.mark.parametrize("sine", [False, True])
def test_the_second_half_of_the_projection_is_the_gate(sine: bool) -> None:
    layer = FeedForward(4, mult=2, sine=sine)
    x = torch.randn(3, 4)
    value, gate = F.linear(x, layer.ff[0].proj.weight, layer.ff[0].proj.bias).split(8, dim=-1)
    opened = torch.sin(3.14159265359 * gate) if sine else gate * torch.sigmoid(gate)
    assert_close(layer(x), layer.ff[2](value * opened))


def test_fourier_features_have_the_published_values() -> None:
    # model specification, section 3.3: t = 0.5, width 256
    features = FourierFeatures(256)(torch.tensor([0.5]))[0]
    assert_close(features[:3], torch.tensor([-4.37e-8, -0.1270493, -0.2620241]), atol=1e-6, rtol=0)
    assert_close(features[128:131], torch.tensor([1, 0.9918964, 0.9650613]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel", [1, 3])
def test_weight_norm_equals_that_of_torch(kernel: int) -> None:
    ours = WeightNormConv1d(6, 4, kernel)
    ours.weight_g.data.uniform_(0.5, 2)
    plain = nn.Conv1d(6, 4, kernel, padding=kernel // 2)
    theirs = nn.utils.parametrizations.weight_norm(plain, dim=0)
    with torch.no_grad():
        theirs.parametrizations.weight.original0.copy_(ours.weight_g)
        theirs.parametrizations.weight.original1.copy_(ours.weight_v)
        theirs.bias.copy_(ours.bias)
    x = torch.randn(2, 6, 9)
    assert_close(ours(x), theirs(x))
