"""LAION-CLAP through transformers, from the Hub, a local folder or an official checkpoint file."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sa3lora.errors import ModelError
from sa3lora.models.laion_keys import convert_laion_keys, load_converted

if TYPE_CHECKING:
    from transformers import ClapModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Preprocessing of the official checkpoints. The class of transformers starts its mel bands at
# 0 Hz, which moves every embedding by about 3e-3.
_SAMPLE_RATE, _WINDOW_S = 48_000, 10
_FREQUENCY_MIN, _FREQUENCY_MAX = 50, 14_000
_MAX_TOKENS = 77
_TOKENIZER = "roberta-base"


def is_laion_folder(folder: Path) -> bool:
    """Say whether a folder holds a CLAP of transformers."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "clap"


def load_tokenizer(name_or_path: str, *, vocab_size: int) -> PreTrainedTokenizerBase:
    """Load a tokenizer and make sure that it is the whole one.

    Offline, transformers answers a name it has not cached with an empty tokenizer, not an error.

    Raises:
        ModelError: If it cannot be loaded, or its vocabulary is not the model's.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{name_or_path}: no tokenizer could be loaded: {error}") from error
    if len(tokenizer) != vocab_size:
        raise ModelError(
            f"{name_or_path}: the tokenizer has {len(tokenizer)} tokens, the text tower "
            f"{vocab_size}. Download it once online, or put its files (tokenizer.json) into the "
            "model's folder."
        )
    return tokenizer


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read an official `.pt` through torch's restricted reader and the few names it needs."""
    import _codecs

    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    # Its training statistics are numpy scalars, under the old or the new name of their module.
    allowed: list[Any] = [np.dtype, _codecs.encode]
    allowed += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed += [type(np.dtype(kind)) for kind in ("float64", "float32", "int64")]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError,
        _unpickling_error(),
    ) as error:  # fmt: skip
        # What torch says is left out: it advises to open the file without its guard.
        raise ModelError(
            f"{path}: not a readable LAION checkpoint. Download it again, or name another."
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path}: holds no state_dict of tensors, so it is no LAION checkpoint")
    return dict(state)


def _unpickling_error() -> type[Exception]:
    import pickle

    return pickle.UnpicklingError


class LaionClap:
    """LAION-CLAP as an embedding model: 10 s of mono at 48 kHz, one space for audio and text."""

    sample_rate = _SAMPLE_RATE
    window_s = float(_WINDOW_S)

    def __init__(
        self, model: ClapModel, tokenizer: PreTrainedTokenizerBase, *, name: str, device: str
    ) -> None:
        """Take a loaded model; `from_pretrained` and `from_checkpoint` load one."""
        from transformers import ClapFeatureExtractor

        self.name = name
        self._device = torch.device(device)
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._tokenizer = tokenizer
        self._features = ClapFeatureExtractor(
            truncation="rand_trunc",
            padding="repeatpad",
            frequency_min=_FREQUENCY_MIN,
            frequency_max=_FREQUENCY_MAX,
        )

    @classmethod
    def from_pretrained(cls, name_or_path: str, *, device: str = "cpu") -> LaionClap:
        """Load a CLAP of transformers' layout from the Hub or a folder.

        Raises:
            ModelError: If it cannot be had, is a fusion model, or lacks its tokenizer.
        """
        from transformers import ClapModel

        try:
            model, report = ClapModel.from_pretrained(name_or_path, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{name_or_path}: LAION-CLAP could not be loaded: {error}\nGive a folder with its "
                "files, or an official .pt file, or work online once."
            ) from error
        missing = sorted(report["missing_keys"])
        if missing:
            raise ModelError(f"{name_or_path}: tensors are missing: {', '.join(missing)}")
        if model.config.audio_config.enable_fusion:
            raise ModelError(f"{name_or_path} is a fusion model; use laion/larger_clap_music")
        vocab_size = model.config.text_config.vocab_size
        tokenizer = load_tokenizer(name_or_path, vocab_size=vocab_size)
        return cls(model, tokenizer, name=_short_name(name_or_path), device=device)

    @classmethod
    def from_checkpoint(cls, path: Path, *, device: str = "cpu") -> LaionClap:
        """Load an official `.pt` file; the tokenizer lies beside it or comes from the Hub.

        Raises:
            ModelError: If the file does not fit, or no whole tokenizer is found.
        """
        model = load_converted(convert_laion_keys(_read_checkpoint(path)))
        beside = (path.parent / "tokenizer.json").is_file()
        tokenizer = load_tokenizer(
            str(path.parent) if beside else _TOKENIZER,
            vocab_size=model.config.text_config.vocab_size,
        )
        return cls(model, tokenizer, name=_short_name(str(path)), device=device)

    @torch.inference_mode()
    def embed_audio(self, windows: list[Tensor]) -> Tensor:
        """Embed mono windows (N,) of at most 10 s at 48 kHz: (n, D), unit length.

        A shorter one is repeated as often as it fits and then filled with silence, as the
        official code does.
        """
        longest = max(len(window) for window in windows)
        if longest > self.sample_rate * _WINDOW_S:
            raise ValueError(f"a window holds at most 480000 samples, got {longest}")
        waves = [_as_int16(window).numpy() for window in windows]
        features = self._features(waves, sampling_rate=self.sample_rate, return_tensors="pt")
        inputs = features["input_features"].float().to(self._device)
        embedded: Tensor = self._model.get_audio_features(input_features=inputs).pooler_output
        return embedded.cpu()

    @torch.inference_mode()
    def embed_text(self, prompts: list[str]) -> Tensor:
        """Embed prompts: (n, D), unit length; what lies beyond 77 tokens is cut off and logged."""
        tokens = self._tokenizer(prompts, padding=True, return_tensors="pt")
        if tokens["input_ids"].shape[1] > _MAX_TOKENS:
            logger.warning("prompts longer than %d tokens are cut for CLAP", _MAX_TOKENS)
            tokens = self._tokenizer(
                prompts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
            )
        output = self._model.get_text_features(
            input_ids=tokens["input_ids"].to(self._device),
            attention_mask=tokens["attention_mask"].to(self._device),
        )
        embedded: Tensor = output.pooler_output
        return embedded.cpu()


def _as_int16(window: Tensor) -> Tensor:
    """Round to 16 bits, as the official preprocessing does."""
    return (window.float().cpu().clamp(-1, 1) * 32767).to(torch.int16).float() / 32767


def _short_name(name_or_path: str) -> str:
    return os.path.basename(os.path.normpath(name_or_path))
