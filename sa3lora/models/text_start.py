"""A new, untrained T5Gemma encoder around a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sa3lora.models.text import TextEncoder


def new_text_encoder(
    tokenizer_folder: Path, *, width: int, layers: int, max_length: int
) -> TextEncoder:
    """Build an encoder with heads of 64 channels; its weights come from the global generator.

    Args:
        tokenizer_folder: Holds `tokenizer.json` and `tokenizer_config.json`.
        width: Channels of a token, a multiple of 64.
        layers: Number of layers.
        max_length: Longest prompt in tokens.
    """
    from transformers import AutoTokenizer, T5GemmaConfig, T5GemmaEncoderModel, T5GemmaModuleConfig

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder), local_files_only=True)
    heads = width // 64
    shape: dict[str, Any] = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": 64,
        "query_pre_attn_scalar": 64, "vocab_size": len(tokenizer), "sliding_window": 256,
        "max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    }  # fmt: skip
    config = T5GemmaConfig(
        encoder=T5GemmaModuleConfig(**shape), decoder=T5GemmaModuleConfig(**shape),
        is_encoder_decoder=False, vocab_size=len(tokenizer), attn_implementation="eager",
    )  # fmt: skip
    return TextEncoder(tokenizer, T5GemmaEncoderModel(config), max_length=max_length, text_hash="")
