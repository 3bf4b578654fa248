"""Prompts to T5Gemma embeddings; the encoder stays outside the model's weights."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor

from sa3lora.errors import ModelError

logger = logging.getLogger(__name__)

# What transformers raises on a damaged file depends on which of its parts meets it first.
UNREADABLE = (
    OSError, ValueError, TypeError, AttributeError, LookupError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip
_FILES = ("config.json", "model.safetensors", "tokenizer.json")


class TextEncoder:
    """Tokenizer and T5Gemma encoder from one folder, in the type they are stored in."""

    def __init__(self, tokenizer: Any, model: Any, *, max_length: int, text_hash: str) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.max_length = max_length
        self.text_hash = text_hash

    @classmethod
    def from_folder(cls, folder: Path, *, max_length: int, device: str = "cpu") -> TextEncoder:
        """Load a T5Gemma folder.

        Raises:
            ModelError: If a file is missing or the tokenizer is empty.
        """
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} is no text encoder: config.json is missing")
        from transformers import AutoTokenizer, T5GemmaEncoderModel
        from transformers.utils import logging as transformers_logging

        shows_bar = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            model, info = T5GemmaEncoderModel.from_pretrained(
                str(folder), local_files_only=True, dtype="auto", attn_implementation="eager",
                output_loading_info=True,
            )  # fmt: skip
        except UNREADABLE as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"{folder} could not be loaded as a text encoder ({reason.rstrip(' .:')}). "
                "Copy or download that folder again."
            ) from error
        finally:
            if shows_bar:
                transformers_logging.enable_progress_bar()
        if info["missing_keys"]:
            lacking = ", ".join(sorted(info["missing_keys"])[:5])
            raise ModelError(f"{folder}: the text encoder lacks tensors: {lacking}")
        # offline, some tokenizers load "successfully" with nothing but special tokens
        if len(tokenizer) < 32:
            raise ModelError(f"{folder}: the tokenizer is empty ({len(tokenizer)} tokens)")
        return cls(
            tokenizer, model.eval().requires_grad_(False).to(device),
            max_length=max_length, text_hash=folder_hash(folder),
        )  # fmt: skip

    @property
    def dim(self) -> int:
        """Width of a token embedding."""
        return int(self.model.config.encoder.hidden_size)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], *, batch_size: int = 16) -> list[Tensor]:
        """Embed prompts; returns the valid tokens of each, (L_i, D), on the CPU.

        A prompt longer than the model's limit is cut there and named in the log.
        """
        out: list[Tensor] = []
        for start in range(0, len(prompts), batch_size):
            batch = list(prompts[start : start + batch_size])
            hidden, mask = self.forward(batch)
            out += [h[m].cpu() for h, m in zip(hidden, mask, strict=True)]
        return out

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokenise, cut to the model's limit; marks that the tokenizer adds survive the cut."""
        tokens: list[list[int]] = self.tokenizer(list(prompts))["input_ids"]
        for index, prompt in enumerate(prompts):
            if len(tokens[index]) > self.max_length:
                logger.warning(
                    "prompt has %d tokens, only the first %d are used: %.60s",
                    len(tokens[index]), self.max_length, prompt,
                )  # fmt: skip
                cut = self.tokenizer(prompt, truncation=True, max_length=self.max_length)
                tokens[index] = cut["input_ids"]
        return tokens

    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embed prompts in one batch, with gradient; (B, L, D) and the mask (B, L)."""
        kept = self.token_ids(prompts)
        longest = max(1, max(len(ids) for ids in kept))
        ids = torch.zeros(len(kept), longest, dtype=torch.long)
        mask = torch.zeros(len(kept), longest, dtype=torch.bool)
        for row, item in enumerate(kept):
            ids[row, : len(item)] = torch.tensor(item, dtype=torch.long)
            mask[row, : len(item)] = True
        # a row without any token still needs one key for the softmax; it is masked out again
        attended = mask.clone()
        attended[~mask.any(dim=1), 0] = True
        device = self.model.device
        hidden = self.model(input_ids=ids.to(device), attention_mask=attended.to(device).long())
        return hidden.last_hidden_state, mask.to(device)


def folder_hash(folder: Path) -> str:
    """SHA-256 of the weights, configuration and tokenizer that decide an embedding."""
    digest = hashlib.sha256()
    for name in _FILES:
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
