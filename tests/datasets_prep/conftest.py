"""Folders of audio for the tests of prep, and the small model that encodes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sa3lora.models.source import ModelSource, resolve_model


@pytest.fixture(scope="session")
def source(small_model: Path) -> ModelSource:
    """The small model: 8 kHz, ratio 32, clips up to 1.024 s."""
    return resolve_model(str(small_model))


@pytest.fixture
def write_noise() -> Callable[..., Path]:
    """Write quiet noise, another for each name."""

    def write(path: Path, *, seconds: float = 0.4, rate: int = 8000, channels: int = 2) -> Path:
        rng = np.random.default_rng(list(path.name.encode()))
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = 0.1 * rng.standard_normal((round(seconds * rate), channels))
        soundfile.write(path, samples.astype(np.float32), rate)
        return path

    return write


@pytest.fixture
def tracks(tmp_path: Path, write_noise: Callable[..., Path]) -> Path:
    """Five captioned files, one of them long enough for two clips."""
    folder = tmp_path / "tracks"
    for number in range(5):
        path = write_noise(folder / f"t{number}.wav", seconds=1.5 if number == 0 else 0.4)
        path.with_suffix(".txt").write_text(f"noise number {number}\n", encoding="utf-8")
    return folder
