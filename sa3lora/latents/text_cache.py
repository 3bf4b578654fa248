"""Text embeddings kept on disk, so that the text encoder can leave memory before training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from sa3lora.errors import DatasetError
from sa3lora.runs import write_bytes_atomic

_PROMPTS_PER_FILE = 512
_PROMPTS_PER_CALL = 16


class PromptEncoder(Protocol):
    """What the cache needs of a text encoder."""

    @property
    def text_hash(self) -> str:
        """Hash of weights and tokenizer."""

    def encode(self, prompts: list[str]) -> list[Tensor]:
        """Embed prompts; each gives (L, D), valid tokens only."""


class TextCache:
    """Embeddings of prompts by one text encoder: valid tokens only, bfloat16 on disk.

    Each file holds many prompts and is written whole, so any number of processes may build the
    same cache; at worst they do some work twice.
    """

    def __init__(self, folder: str | Path, *, text_hash: str) -> None:
        """Point at a cache; nothing is read or written yet.

        Args:
            folder: `DATASET/.text`; may be missing.
            text_hash: Of the encoder; every encoder has a folder of its own in there.
        """
        self.text_hash = text_hash
        self._folder = Path(folder) / text_hash[:16]
        self._places: dict[str, Path] = {}
        self._read_files: set[Path] = set()

    def build(self, prompts: Iterable[str], encoder: PromptEncoder) -> int:
        """Embed the prompts that are missing.

        Args:
            prompts: In any order, repeats allowed.
            encoder: Used only if something is missing.

        Returns:
            How many prompts were embedded now.

        Raises:
            DatasetError: If the encoder is another than the cache's, or the disk is full.
        """
        wanted = sorted(set(prompts))
        missing = self.missing(wanted)
        if missing and encoder.text_hash != self.text_hash:
            raise DatasetError(
                f"this text cache is for the encoder {self.text_hash[:12]}, "
                f"got the encoder {encoder.text_hash[:12]}."
            )
        for start in range(0, len(missing), _PROMPTS_PER_FILE):
            self._write(missing[start : start + _PROMPTS_PER_FILE], encoder)
        return len(missing)

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """Tell which prompts are not in the cache.

        Args:
            prompts: In any order, repeats allowed.

        Returns:
            The missing ones, sorted, each once.
        """
        self._find_files()
        return sorted(p for p in set(prompts) if _key(p) not in self._places)

    def get(self, prompt: str) -> Tensor:
        """Read the embedding of one prompt.

        Args:
            prompt: One that `build` has seen.

        Returns:
            (L, D) float32, exactly the stored bfloat16 values.

        Raises:
            DatasetError: If it is not in the cache, or its file is damaged.
        """
        key = _key(prompt)
        if key not in self._places:
            self._find_files()
        if key not in self._places:
            raise DatasetError(f"the text cache {self._folder} does not hold {prompt!r}.")
        path = self._places[key]
        try:
            with safe_open(str(path), framework="pt") as file:
                stored: Tensor = file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error
        return stored.float()

    def _find_files(self) -> None:
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("*.safetensors")):
            if path in self._read_files:
                continue
            try:
                with safe_open(str(path), framework="pt") as file:
                    self._places.update(dict.fromkeys(file.keys(), path))
            except (OSError, SafetensorError) as error:
                raise _damaged(path, error) from error
            self._read_files.add(path)

    def _write(self, prompts: Sequence[str], encoder: PromptEncoder) -> None:
        tensors: dict[str, Tensor] = {}
        for start in range(0, len(prompts), _PROMPTS_PER_CALL):
            part = list(prompts[start : start + _PROMPTS_PER_CALL])
            for prompt, embedding in zip(part, encoder.encode(part), strict=True):
                if not bool(torch.isfinite(embedding).all()):
                    raise DatasetError(f"the text encoder gave no finite embedding of {prompt!r}.")
                tensors[_key(prompt)] = embedding.detach().to("cpu", torch.bfloat16).contiguous()
        # The name follows from the prompts: two processes that build the same write one file.
        name = hashlib.sha256("".join(tensors).encode()).hexdigest()[:16]
        texts = json.dumps({_key(prompt): prompt for prompt in prompts}, ensure_ascii=False)
        data = save_tensors(tensors, metadata={"text_hash": self.text_hash, "prompts": texts})
        path = self._folder / f"{name}.safetensors"
        try:
            write_bytes_atomic(path, data)
        except OSError as error:
            raise DatasetError(
                f"cannot write {path}: {error.strerror or error}. Text embeddings lie beside the "
                "dataset: make room there and make it writable, or copy the dataset elsewhere."
            ) from error
        self._places.update(dict.fromkeys(tensors, path))
        self._read_files.add(path)


def _key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def _damaged(path: Path, error: Exception) -> DatasetError:
    return DatasetError(f"{path} is damaged ({error}). Delete it: it is made again when needed.")
