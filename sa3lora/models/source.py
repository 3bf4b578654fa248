"""Finding a model by name, folder or Hub id, and loading its parts one by one."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

from sa3lora.errors import ModelError
from sa3lora.models.attention import choose_backend
from sa3lora.models.checkpoint import (
    autoencoder_key,
    check_inventory,
    denoiser_key,
    fill,
    hash_tensors,
    read_inventory,
    read_tensors,
    stream_tensors,
)
from sa3lora.models.config import ModelConfig
from sa3lora.models.config_parse import load_config
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.hub import MODEL_FILES, download
from sa3lora.models.quantised import QuantKind, quantising
from sa3lora.models.registry import MODELS, TINY_FOLDER
from sa3lora.models.same import SameAutoencoder
from sa3lora.models.text import TextEncoder
from sa3lora.models.text_files import TEXT_FOLDERS, local_text_folder


class ModelSource:
    """A model on disk: its configuration is read, its weights load on demand, part by part."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        repo_id: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        self.repo_id = repo_id
        self.revision = revision
        self.config: ModelConfig = load_config(folder / "model_config.json")
        check_inventory(self.weights_path, self.config)

    @property
    def weights_path(self) -> Path:
        """The weight file."""
        return self.folder / "model.safetensors"

    @cached_property
    def _denoiser_keys(self) -> dict[str, str]:
        keys = {key: denoiser_key(key) for key in sorted(read_inventory(self.weights_path))}
        return {key: name for key, name in keys.items() if name is not None}

    @cached_property
    def _autoencoder_keys(self) -> dict[str, str]:
        keys = {key: autoencoder_key(key) for key in sorted(read_inventory(self.weights_path))}
        return {key: name for key, name in keys.items() if name is not None}

    @cached_property
    def dit_hash(self) -> str:
        """Identity of the transformer and its conditioners; empty for an autoencoder alone."""
        if not self._denoiser_keys:
            return ""
        by_name = dict(sorted(self._denoiser_keys.items(), key=lambda item: item[1]))
        return hash_tensors(stream_tensors(self.weights_path, by_name))

    @cached_property
    def ae_hash(self) -> str:
        """Identity of the autoencoder: latents of equal `ae_hash` are interchangeable."""
        by_name = dict(sorted(self._autoencoder_keys.items(), key=lambda item: item[1]))
        return hash_tensors(stream_tensors(self.weights_path, by_name))

    def load_denoiser(
        self,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        quantised: QuantKind | None = None,
        runs_on: str | None = None,
    ) -> Denoiser:
        """Load transformer and conditioners, frozen.

        Args:
            device: Where they go.
            dtype: Type of the weights, or of what is not quantised.
            quantised: Hold the linear layers of the blocks in so few bits. They are quantised one
                at a time, so that the whole model is never there in another form.
            runs_on: Where they will compute, if they are moved there later.

        Raises:
            ModelError: If the attention back-end that is asked for cannot run here, or what
                quantises is not installed.
        """
        choose_backend(torch.device(runs_on or device).type, dtype)
        with torch.device("meta"):
            denoiser = Denoiser(self.config)
        tensors = read_tensors(self.weights_path, self._denoiser_keys)
        if quantised is not None:
            tensors = quantising(
                denoiser, stream_tensors(self.weights_path, self._denoiser_keys),
                kind=quantised, device=device, dtype=dtype,
            )  # fmt: skip
        fill(denoiser, tensors, device=device, dtype=dtype)
        return denoiser.eval().requires_grad_(False)

    def load_autoencoder(
        self, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> SameAutoencoder:
        """Load the SAME autoencoder, frozen."""
        with torch.device("meta"):
            autoencoder = SameAutoencoder(self.config.same)
        tensors = read_tensors(self.weights_path, self._autoencoder_keys)
        fill(autoencoder, tensors, device=device, dtype=dtype)
        return autoencoder.eval().requires_grad_(False)

    def load_text_encoder(self, *, device: str = "cpu") -> TextEncoder:
        """Load the prompt encoder in the type it is stored in.

        Raises:
            ModelError: If its folder is missing or damaged, or its width is not the model's.
        """
        encoder = TextEncoder.from_folder(
            self.text_folder(), max_length=self.config.max_prompt_tokens, device=device
        )
        if encoder.dim != self.config.cond_dim:
            raise ModelError(
                f"the text encoder of {self.name} is {encoder.dim} wide, "
                f"its model_config.json says {self.config.cond_dim}"
            )
        return encoder

    def text_folder(self) -> Path:
        """Find the text encoder: configured path, beside the model, else the Hub.

        Raises:
            ModelError: If the model has none.
        """
        prompt = self.config.prompt
        if prompt is None:
            raise ModelError(f"{self.name} is an autoencoder alone, it has no text encoder")
        if (local := local_text_folder(self.folder, self.config)) is not None:
            return local
        pattern = f"{prompt.subfolder}/*" if prompt.subfolder else "*"
        # base models name their sibling's repository, but each holds a copy under one licence
        if self.repo_id and prompt.subfolder:
            root = download(self.repo_id, [pattern], revision=self.revision)
            if (root / prompt.subfolder / "config.json").is_file():
                return root / prompt.subfolder
        try:
            if prompt.repo_id:
                return download(prompt.repo_id, [pattern]) / prompt.subfolder
            return download(prompt.model_name, ["*.json", "*.safetensors", "tokenizer*"])
        except ModelError as error:
            raise ModelError(
                f"{self.folder} holds no text encoder ({TEXT_FOLDERS[0]}/config.json), and "
                f"{error}\nCopying it to {self.folder / TEXT_FOLDERS[0]} does too."
            ) from error


def resolve_model(name_or_path: str, *, revision: str | None = None) -> ModelSource:
    """Find a model by registry name, local folder or Hub id.

    Raises:
        ModelError: If there is no such model, or it cannot be downloaded.
        CheckpointError: If its weights do not fit its configuration.
    """
    entry = MODELS.get(name_or_path)
    if entry is not None:
        if entry.repo_id is None:
            return ModelSource(entry.name, TINY_FOLDER)
        return _from_hub(entry.name, entry.repo_id, revision=revision)
    folder = Path(name_or_path).expanduser()
    if name_or_path and folder.is_dir():
        return ModelSource(folder.resolve().name, folder)
    if folder.is_file():
        raise ModelError(
            f"{name_or_path} is a file. Give the folder that holds model_config.json and "
            "model.safetensors."
        )
    if name_or_path.count("/") == 1 and not name_or_path.startswith((".", "/", "~")):
        known = {e.repo_id: e.name for e in MODELS.values() if e.repo_id}
        name = known.get(name_or_path, name_or_path)
        return _from_hub(name, name_or_path, revision=revision)
    raise ModelError(
        f"there is no model {name_or_path!r}. Known names: {', '.join(MODELS)}; "
        "or give a folder that holds model_config.json, or a Hub id like owner/name."
    )


def _from_hub(name: str, repo_id: str, *, revision: str | None) -> ModelSource:
    folder = download(repo_id, MODEL_FILES, revision=revision)
    return ModelSource(name, folder, repo_id=repo_id, revision=revision)
