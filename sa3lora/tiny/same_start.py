"""First weights of the embedded autoencoder: a linear codec, written into the transformer.

From the official initial values training starts on a saddle: the learned tokens are almost 0, both
attention maps of a pair are uniform and their difference is 0, so that nothing of a latent reaches
the tokens that must become sound. Here the first block of encoder and decoder starts out as two
principal component analyses in a row, of the patches and of the components of a latent's patches
together, and learning goes on from there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sa3lora.models.layers import WeightNormConv1d
from sa3lora.models.same import Resampler, SameAutoencoder
from sa3lora.models.same_block import DifferentialAttention

_CONTENT = 0.3  # deviation of the code in the residual stream, where tanh is still straight
_FLAG = 3.0
_SHARPNESS = 6.0  # of queries and keys, so that one place stands out from its neighbours
_NOISE = 0.02
_PAIRS = 3  # the fastest rotary pairs tell neighbours apart


@torch.no_grad()
def start_as_pca(autoencoder: SameAutoencoder, audio: Tensor) -> None:
    """Write the linear codec of `audio`, (B, 2, N), into the weights."""
    config = autoencoder.config
    size, stride = config.patch_size, config.encoder.stride
    patches = audio.reshape(len(audio), 2, -1, size).transpose(1, 2).reshape(-1, 2 * size)
    basis, sigma = _components(patches, config.encoder.dim_heads)
    together = (patches @ basis.T).reshape(-1, stride * len(basis))
    joint, deviation = _components(together, config.latent_dim)
    scale = sigma.repeat(stride)  # from components of deviation 1 to those of the sound

    for coder in (autoencoder.encoder, autoencoder.decoder):
        _quieten(coder.resampler)
    _start_encoder(autoencoder, basis / sigma[:, None], joint * scale / deviation[:, None])
    _start_decoder(autoencoder, basis * sigma[:, None], (joint * deviation[:, None] / scale).T)


def _components(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Give the strongest principal components, (count, D), with their deviations."""
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    deviation = values.flip(0)[:count].clamp_min(1e-8).sqrt()
    return vectors.flip(1)[:, :count].T, deviation


def _quieten(resampler: Resampler) -> None:
    """Leave every branch a small random start."""
    width = resampler.config.width
    resampler.new_tokens.normal_(std=_NOISE)
    resampler.mapping.bias.zero_()
    for block in resampler.blocks:
        block.pre_norm.alpha.fill_(1.0)
        block.ff_norm.alpha.fill_(1.0)
        writers: list[nn.Linear] = [block.self_attn.to_out, block.ff.last]
        for layer in writers:
            nn.init.normal_(layer.weight, std=0.1 / math.sqrt(width))


def _start_encoder(autoencoder: SameAutoencoder, analysis: Tensor, joint: Tensor) -> None:
    resampler, linear = autoencoder.encoder.resampler, autoencoder.encoder.projection
    rank, stride, heads = len(analysis), resampler.config.stride, resampler.config.dim_heads
    given, learned = resampler.config.width - 1, resampler.config.width - 2
    _set_mapping(resampler.mapping, rows=analysis * _CONTENT, flags=(given, learned))
    resampler.mapping.bias[given] = _FLAG
    resampler.new_tokens[..., learned] = _FLAG
    attention = resampler.blocks[0].self_attn
    for place in range(stride):
        _route(attention, head=place, asks=learned, answers=given, offset=place - stride)
        _carry(attention, head=place, source=0, target=place * heads, rank=rank)
    linear.weight.normal_(std=_NOISE * 0.1)
    linear.bias.zero_()
    linear.weight[:, : joint.shape[1]] = joint / _CONTENT


def _start_decoder(autoencoder: SameAutoencoder, synthesis: Tensor, joint: Tensor) -> None:
    resampler, linear = autoencoder.decoder.resampler, autoencoder.decoder.projection
    rank, stride, heads = len(synthesis), resampler.config.stride, resampler.config.dim_heads
    given = resampler.config.width - 1
    linear.weight.normal_(std=_NOISE * 0.1)
    linear.bias.zero_()
    linear.bias[given] = _FLAG
    linear.weight[: len(joint)] = _CONTENT * joint
    attention = resampler.blocks[0].self_attn
    for place in range(stride):
        asks = given - 1 - place
        resampler.new_tokens[0, place, asks] = _FLAG
        _route(attention, head=place, asks=asks, answers=given, offset=-1 - place)
        _carry(attention, head=place, source=place * heads, target=0, rank=rank)
    mapping = resampler.mapping
    weight = 0.01 * torch.randn_like(mapping.weight_v) / math.sqrt(resampler.config.width)
    weight[:, :rank, mapping.weight_v.shape[2] // 2] = synthesis.T / _CONTENT
    mapping.weight_v.copy_(weight)
    mapping.weight_g.copy_(weight.norm(dim=(1, 2), keepdim=True))


def _set_mapping(mapping: WeightNormConv1d, *, rows: Tensor, flags: tuple[int, ...]) -> None:
    """Let the first channels be `rows`, the flags 0 and the rest small."""
    weight = 0.3 * mapping.weight_v.clone()
    weight[: len(rows), :, 0] = rows
    mapping.weight_v.copy_(weight)
    mapping.weight_g.copy_(weight.norm(dim=(1, 2), keepdim=True))
    for flag in flags:
        mapping.weight_g[flag] = 0


def _route(
    attention: DifferentialAttention, *, head: int, asks: int, answers: int, offset: int
) -> None:
    """Let tokens with flag `asks` see, in one head, the token `offset` away with flag `answers`."""
    width = attention.to_out.in_features
    size = width // attention.heads
    rows = slice(head * size, (head + 1) * size)
    for part in (0, 1, 3, 4):  # q, k, q', k'; the second map stays uniform
        attention.to_qkv.weight[part * width :][rows].normal_(std=_NOISE / math.sqrt(width))
    attention.q_norm.gamma.fill_(_SHARPNESS)
    attention.k_norm.gamma.fill_(_SHARPNESS)
    half = 16  # rotary pairs are (i, i + 16)
    for i in range(_PAIRS):
        speed = 10000.0 ** (-i / half)
        # a key `offset` away is turned by offset * speed against the query: turn it back
        angle = -offset * speed
        query = head * size + i
        attention.to_qkv.weight[query, asks] = 0.5
        for value, row in ((math.cos(angle), query), (math.sin(angle), query + half)):
            wanted = max(min(value, 0.97), -0.97)
            attention.to_qkv.weight[width + row, answers] = math.atanh(wanted) / 4


def _carry(
    attention: DifferentialAttention, *, head: int, source: int, target: int, rank: int
) -> None:
    """Copy `rank` channels from `source` on in the seen token to `target` on in the seeing one."""
    width = attention.to_out.in_features
    size = width // attention.heads
    values = attention.to_qkv.weight[2 * width : 3 * width]
    values[head * size : (head + 1) * size].normal_(std=_NOISE / math.sqrt(width))
    for i in range(rank):
        values[head * size + i, source + i] = 1.0
        attention.to_out.weight[target + i, head * size + i] = 1.0
