from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from sa3lora.models import Denoiser, ModelSource, SameAutoencoder, resolve_model
from sa3lora.models.attention import choose_backend


@pytest.fixture(autouse=True)
def no_forced_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SA3LORA_ATTENTION", raising=False)
    choose_backend.cache_clear()
    yield
    choose_backend.cache_clear()


@pytest.fixture(scope="session", params=["small", "medium"])
def source(request: pytest.FixtureRequest, small_model: Path) -> ModelSource:
    """Random models of both kinds: plain attention and chunks, differential and band."""
    return resolve_model(str(small_model.with_name(request.param)))


@pytest.fixture(scope="session")
def denoiser(source: ModelSource) -> Denoiser:
    return source.load_denoiser()


@pytest.fixture(scope="session")
def autoencoder(source: ModelSource) -> SameAutoencoder:
    return source.load_autoencoder()


@pytest.fixture(scope="session")
def enliven() -> Callable[[nn.Module], nn.Module]:
    """Fill a module with random weights none of which is dead."""
    from sa3lora.models.random_model import random_tensor

    def fill(module: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(11)
        state = {
            key: random_tensor(key, tuple(value.shape), generator=generator)
            for key, value in module.state_dict().items()
        }
        module.load_state_dict(state)
        return module.eval().requires_grad_(False)

    return fill
