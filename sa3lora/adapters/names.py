"""What the layers of an SA3 model are called elsewhere, and in which order their rows lie.

Three other naming schemes: diffusers (`StableAudio3DiTModel` and its duration embedder, 0.42.1),
ComfyUI (`diffusion_model.` before a dotted name) and kohya (`lora_unet_` before a name whose dots
became underscores).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Part = Literal["transformer", "conditioner"]
PARTS: tuple[Part, ...] = ("transformer", "conditioner")

_OF_A_BLOCK = (
    "self_attn.to_qkv", "self_attn.to_out", "cross_attn.to_q", "cross_attn.to_kv",
    "cross_attn.to_out", "ff.ff.0.proj", "ff.ff.2", "to_local_embed.0", "to_local_embed.2",
)  # fmt: skip
_OF_THE_ROOT = (
    "model.to_timestep_embed.0", "model.to_timestep_embed.2", "model.to_cond_embed.0",
    "model.to_cond_embed.2", "model.to_global_embed.0", "model.to_global_embed.2",
    "model.preprocess_conv", "model.postprocess_conv", "model.transformer.project_in",
    "model.transformer.project_out", "model.transformer.global_cond_embedder.0",
    "model.transformer.global_cond_embedder.2",
    "conditioners.seconds_total.embedder.embedding.1", "conditioners.prompt.proj_out",
)  # fmt: skip
_FLAT_BLOCK = {name.replace(".", "_"): name for name in _OF_A_BLOCK}
_FLAT_ROOT = {name.replace(".", "_"): name for name in _OF_THE_ROOT}
_FLAT_LAYER = re.compile(r"model_transformer_layers_(\d{1,4})_(.+)")

_DURATION = "conditioners.seconds_total.embedder.embedding.1"
# Ours on the left, without `model.`; the first that fits is taken.
_LAYER = r"transformer\.layers\.(\d+)\."
_DIFFUSERS = (
    (re.compile(_LAYER + r"ff\.ff\.0\.proj"), r"transformer_blocks.\1.ff.proj_in"),
    (re.compile(_LAYER + r"ff\.ff\.2"), r"transformer_blocks.\1.ff.proj_out"),
    (re.compile(_LAYER + r"(.+)"), r"transformer_blocks.\1.\2"),
    (re.compile(r"transformer\.project_(in|out)"), r"proj_\1"),
    (re.compile(r"transformer\.(global_cond_embedder\.\d+)"), r"\1"),
    (re.compile(r"(to_\w+_embed\.\d+|preprocess_conv|postprocess_conv)"), r"\1"),
)  # fmt: skip
_OURS = (
    (re.compile(r"transformer_blocks\.(\d+)\.ff\.proj_in"), r"transformer.layers.\1.ff.ff.0.proj"),
    (re.compile(r"transformer_blocks\.(\d+)\.ff\.proj_out"), r"transformer.layers.\1.ff.ff.2"),
    (re.compile(r"transformer_blocks\.(\d+)\.(.+)"), r"transformer.layers.\1.\2"),
    (re.compile(r"proj_(in|out)"), r"transformer.project_\1"),
    (re.compile(r"(global_cond_embedder\.\d+)"), r"transformer.\1"),
    (re.compile(r"(to_\w+_embed\.\d+|preprocess_conv|postprocess_conv)"), r"\1"),
)
# diffusers puts both queries first, then both keys: (q, q', k, k', v) for our (q, k, v, q', k').
_TO_DIFFUSERS = (0, 3, 1, 4, 2)
_FROM_DIFFUSERS = (0, 2, 4, 1, 3)


def site_of(name: str) -> str | None:
    """Find the site that a name without prefix means, with dots or underscores; None if none.

    A name may be that below the transformer's wrapper (`transformer.layers.0.…`) or the full one.
    """
    flat = name.replace(".", "_")
    for candidate in (flat, f"model_{flat}"):
        if candidate in _FLAT_ROOT:
            return _FLAT_ROOT[candidate]
        match = _FLAT_LAYER.fullmatch(candidate)
        if match and match[2] in _FLAT_BLOCK:
            return f"model.transformer.layers.{int(match[1])}.{_FLAT_BLOCK[match[2]]}"
    return None


def to_diffusers(site: str) -> tuple[Part, str] | None:
    """Give the diffusers model that has a site and its name there; None if neither has it."""
    if site == _DURATION:
        return "conditioner", "linear"
    if not site.startswith("model."):
        return None
    name = site.removeprefix("model.")
    for pattern, theirs in _DIFFUSERS:
        match = pattern.fullmatch(name)
        if match:
            return "transformer", match.expand(theirs)
    return None


def from_diffusers(part: Part, name: str) -> str | None:
    """Give the site of a layer of a diffusers model; None if the name is unknown."""
    if part == "conditioner":
        return _DURATION if name == "linear" else None
    for pattern, ours in _OURS:
        match = pattern.fullmatch(name)
        if match:
            return f"model.{match.expand(ours)}"
    return None


def diffusers_rows(site: str, fan_out: int, fan_in: int) -> tuple[int, ...] | None:
    """Order in which diffusers has the fifths of a site's rows, as numbers of ours; None if same.

    Only the fused projection of differential self-attention differs.
    """
    fused = site.endswith(".self_attn.to_qkv") and fan_out == 5 * fan_in
    return _TO_DIFFUSERS if fused else None


def our_rows(site: str, fan_out: int, fan_in: int) -> tuple[int, ...] | None:
    """Undo `diffusers_rows`."""
    return _FROM_DIFFUSERS if diffusers_rows(site, fan_out, fan_in) else None


def reorder_rows(tensor: Tensor, order: Sequence[int] | None) -> Tensor:
    """Put equal parts of the first axis in another order; None leaves the tensor as it is."""
    if order is None:
        return tensor
    parts = tensor.chunk(len(order))
    return torch.cat([parts[number] for number in order])
