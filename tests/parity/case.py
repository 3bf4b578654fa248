"""One directory of answers of the official code: model, inputs, parameters, tolerances."""

from __future__ import annotations

import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sa3lora.models import Conditioning, Denoiser, ModelSource, SameAutoencoder, resolve_model

ROOT = Path(os.environ.get("SA3LORA_GOLDEN", Path(__file__).parent.parent / "data" / "golden"))


def case_folders() -> list[Path]:
    """Return every case below the folder of cases."""
    return sorted(path.parent for path in ROOT.glob("*/io.json"))


class Case:
    """Reads a case and remembers which tensors were used."""

    def __init__(self, folder: Path, *, changed: str | None = None) -> None:
        """Read a case; the tensor named `changed` is taken times 1.01."""
        self.folder = folder
        self.document = json.loads((folder / "io.json").read_text())
        self.parameters: dict[str, Any] = self.document["cases"]
        self._tensors = load_file(folder / "io.safetensors")
        if changed is not None:
            self._tensors[changed] = self._tensors[changed] * 1.01
        self.used: set[str] = set()
        self._texts: dict[tuple[str, ...], list[Tensor]] = {}

    def __getitem__(self, key: str) -> Tensor:
        self.used.add(key)
        return self._tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def keys(self) -> list[str]:
        """Names of all tensors."""
        return list(self._tensors)

    @cached_property
    def source(self) -> ModelSource:
        """The case's model."""
        return resolve_model(str(self.folder))

    @cached_property
    def autoencoder(self) -> SameAutoencoder:
        """Its autoencoder."""
        return self.source.load_autoencoder()

    @cached_property
    def denoiser(self) -> Denoiser:
        """Its transformer and conditioners."""
        return self.source.load_denoiser()

    @cached_property
    def conditioning(self) -> Conditioning:
        """Of the prompts and durations of group `cond`."""
        group = self.parameters["cond"]
        return self.condition(group["prompts"])

    def condition(self, prompts: list[str]) -> Conditioning:
        """Embed prompts with the durations of group `cond`."""
        key = tuple(prompts)
        if key not in self._texts:  # adapters do not change the text encoder
            self._texts[key] = self.source.load_text_encoder().encode(prompts)
        text = self._texts[key]
        seconds = torch.tensor(self.parameters["cond"]["seconds_total"])
        with torch.no_grad():
            return self.denoiser.condition(text, seconds)

    def tolerance(self, *, guided: bool, bases: bool) -> float:
        """Relative error that the case allows; `bases` where singular vectors come in."""
        text = self.document["tolerance"]
        if bases:
            return float(re.search(r"-xs and stack\.three ([\d.]+e-\d+|[\d.]+)", text)[1])
        if not guided:
            return float(re.search(r"float32: ([\d.e-]+)", text)[1])
        return float(re.search(r"guided outputs[^;]*? ([\d.]+e-\d+|[\d.]+)(?:;|$)", text)[1])

    def compare(
        self,
        key: str,
        ours: Tensor,
        *,
        guided: bool = False,
        centred: bool = False,
        bases: bool = False,
    ) -> None:
        """Compare with the official tensor `key`; `centred` compares what is not its mean."""
        official = self[key]
        assert ours.shape == official.shape, f"{key}: {ours.shape} is not {official.shape}"
        if not official.is_floating_point():
            assert torch.equal(ours, official), f"{key} differs"
            return
        if centred:
            ours, official = ours - ours.mean(), official - official.mean()
        scale = official.norm().clamp_min(1e-12)
        error = float((ours.float() - official).norm() / scale)
        allowed = self.tolerance(guided=guided, bases=bases)
        assert error <= allowed, f"{key}: relative error {error:.2e}, allowed {allowed:.0e}"
