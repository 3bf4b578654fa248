"""An embedding model and a pipeline of a few lines, so that evaluation is tested for itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sa3lora.audio import write_audio

RATE = 1000


class StubEmbedder:
    """Level, brightness and roughness of a window; prompts by their letters."""

    name = "stub"
    sample_rate = RATE
    window_s = 1.0

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def embed_audio(self, windows: list[Tensor]) -> Tensor:
        self.lengths += [len(window) for window in windows]
        return torch.stack([_features(window) for window in windows])

    def embed_text(self, prompts: list[str]) -> Tensor:
        return torch.tensor([[1.0, len(p) / 10, p.count("a")] for p in prompts])


def _features(window: Tensor) -> Tensor:
    steps = window.diff()
    return torch.stack([window.abs().mean(), steps.abs().mean(), steps.diff().abs().mean()])


class StubPipeline:
    """Noise from the seed, louder by each adapter's strength."""

    def __init__(self) -> None:
        self.source = SimpleNamespace(name="stub-model")
        self.config = SimpleNamespace(max_duration_s=20.0)
        self.loaded: dict[str, float] = {}
        self.calls: list[tuple[str, int, bool]] = []
        self.fail_at: int | None = None

    def __call__(
        self,
        prompt: str,
        *,
        duration_s: float,
        num_inference_steps: int | None,
        guidance_scale: float | None,
        seed: int,
    ) -> SimpleNamespace:
        if len(self.calls) == self.fail_at:
            raise RuntimeError("out of memory")
        self.calls.append((prompt, seed, bool(self.loaded)))
        generator = torch.Generator().manual_seed(seed)
        audio = 0.1 * torch.randn(2, round(duration_s * RATE), generator=generator)
        audio = audio * (1 + sum(self.loaded.values()))
        return SimpleNamespace(audio=[audio], sample_rate=RATE, seed=seed)

    def load_adapter(
        self, path: Path, *, adapter_name: str, strength: float, allow_other_base: bool
    ) -> str:
        self.loaded[adapter_name] = strength
        return adapter_name

    def unload_adapter(self, adapter_name: str) -> None:
        del self.loaded[adapter_name]


@pytest.fixture
def embedder() -> StubEmbedder:
    return StubEmbedder()


@pytest.fixture
def pipeline() -> StubPipeline:
    return StubPipeline()


@pytest.fixture
def audio_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write tracks of noise at a level, with sidecar captions."""

    def write(name: str, *, level: float = 0.1, tracks: int = 6, duration_s: float = 3.0) -> Path:
        folder = tmp_path / name
        for number in range(tracks):
            generator = torch.Generator().manual_seed(1000 + number)
            audio = level * torch.randn(2, round(duration_s * RATE), generator=generator)
            write_audio(folder / f"{number}.wav", audio, RATE)
            (folder / f"{number}.txt").write_text(f"a noise {'a' * number}\n", encoding="utf-8")
        return folder

    return write
