"""Names and sizes of official LAION-CLAP checkpoints, as transformers' ClapModel has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from sa3lora.errors import ModelError

if TYPE_CHECKING:
    from transformers import ClapConfig, ClapModel

# RobertaConfig of roberta-base, the text tower of every official checkpoint; ClapTextConfig
# itself would say 1e-12.
_TEXT_NORM_EPS = 1e-5

# What an official checkpoint holds beyond the two towers and their projections.
_UNUSED = re.compile(
    r"^(text|audio)_transform\.|^audio_branch\.(spectrogram_extractor|logmel_extractor|tscam_conv"
    r"|head)\.|\.attn_mask$|^text_branch\.embeddings\.(position_ids|token_type_ids)$"
)
_FUSION = re.compile(r"^audio_branch\.(patch_embed\.)?(mel_conv|fusion_model)")
# Applied in this order, to the keys of the audio tower only.
_AUDIO_RENAMES = (
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.bn0\.", ".batch_norm."),
)


def convert_laion_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an official LAION checkpoint to those of transformers' ClapModel.

    Args:
        state: The checkpoint's `state_dict`, with or without the prefix `module.`.

    Raises:
        ModelError: If it is a fusion checkpoint, whose audio tower differs.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        key = name.removeprefix("module.")
        if _FUSION.match(key):
            raise ModelError(
                f"{key}: this is a fusion checkpoint of LAION-CLAP. Use one without fusion, such "
                "as music_audioset_epoch_15_esc_90.14.pt or 630k-audioset-best.pt."
            )
        if _UNUSED.search(key):
            continue
        if key.startswith("audio_branch."):
            converted.update(_convert_audio(key, tensor))
            continue
        key = re.sub(r"^text_branch\.", "text_model.", key)
        converted[_rename_projection(key)] = tensor
    return converted


def _rename_projection(key: str) -> str:
    key = re.sub(r"_projection\.0\.", "_projection.linear1.", key)
    return re.sub(r"_projection\.2\.", "_projection.linear2.", key)


def _convert_audio(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """Rename one tensor of the audio tower; a fused query, key and value becomes three."""
    key = re.sub(r"^audio_branch\.", "audio_model.audio_encoder.", key)
    if ".attn.qkv." in key:
        stem, kind = key.split(".attn.qkv.")
        names = [f"{stem}.attention.self.{part}.{kind}" for part in ("query", "key", "value")]
        return dict(zip(names, (part.clone() for part in tensor.chunk(3)), strict=True))
    for old, new in _AUDIO_RENAMES:
        key = re.sub(old, new, key)
    return {key: tensor}


def config_of_state(state: Mapping[str, Tensor]) -> ClapConfig:
    """Read the sizes of a model from its converted tensors.

    Heads follow the official models: 4, 8, 16, 32 in the audio tower, 64 wide in the text tower.

    Raises:
        ModelError: If a tensor that tells a size is missing.
    """
    from transformers import ClapAudioConfig, ClapConfig, ClapTextConfig

    try:
        width = state["audio_model.audio_encoder.patch_embed.proj.weight"].shape[0]
        vocabulary, text_width = state["text_model.embeddings.word_embeddings.weight"].shape
        positions = state["text_model.embeddings.position_embeddings.weight"].shape[0]
        inner = state["text_model.encoder.layer.0.intermediate.dense.weight"].shape[0]
        joint = state["text_projection.linear2.weight"].shape[0]
    except KeyError as missing:
        raise ModelError(f"not an official LAION-CLAP checkpoint: it has no {missing}") from None
    depths: list[int] = []
    for stage in range(4):
        pattern = rf"^audio_model\.audio_encoder\.layers\.{stage}\.blocks\.(\d+)\."
        depths.append(_count(state, pattern))
    audio = ClapAudioConfig(
        patch_embeds_hidden_size=width,
        hidden_size=width * 8,
        depths=depths,
        num_attention_heads=[4, 8, 16, 32],
        enable_fusion=False,
    )
    text = ClapTextConfig(
        vocab_size=vocabulary,
        hidden_size=text_width,
        intermediate_size=inner,
        num_hidden_layers=_count(state, r"^text_model\.encoder\.layer\.(\d+)\."),
        num_attention_heads=max(1, text_width // 64),
        max_position_embeddings=positions,
        layer_norm_eps=_TEXT_NORM_EPS,
    )
    return ClapConfig(text_config=text, audio_config=audio, projection_dim=joint)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    numbers = {int(match[1]) for key in state if (match := re.match(pattern, key))}
    return len(numbers)


def load_converted(state: Mapping[str, Tensor]) -> ClapModel:
    """Build a model from converted tensors, all of them and no others.

    Raises:
        ModelError: Listing tensors that are missing, unexpected or of another shape.
    """
    from transformers import ClapModel

    model = ClapModel(config_of_state(state))
    own = model.state_dict()
    # Constant index tables that neither side has to store.
    tables = {key for key in own if key.endswith(("position_ids", "token_type_ids"))}
    problems = [f"missing {key}" for key in own if key not in state and key not in tables]
    problems += [f"unexpected {key}" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(value.shape)}, must be {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    if problems:
        raise ModelError("LAION-CLAP checkpoint does not fit:\n  " + "\n  ".join(problems))
    model.load_state_dict({key: own[key] for key in tables} | dict(state))
    return model
