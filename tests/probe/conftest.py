"""A small model with a trained-looking output, and clips for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sa3lora.latents.format import LatentsDataset
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource, resolve_model


@pytest.fixture(scope="session")
def source(small_model: Path) -> ModelSource:
    return resolve_model(str(small_model))


@pytest.fixture(scope="session")
def denoiser(source: ModelSource) -> Denoiser:
    return source.load_denoiser()


@pytest.fixture(scope="session")
def clips(
    tmp_path_factory: pytest.TempPathFactory, make_latents: Callable[..., Path]
) -> LatentsDataset:
    root = make_latents(tmp_path_factory.mktemp("probe") / "latents", tracks=5, held_out=0)
    return LatentsDataset.open(root)
