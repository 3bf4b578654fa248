from __future__ import annotations

from pathlib import Path

import pytest

from sa3lora.models import ModelSource, resolve_model
from sa3lora.pipeline import SA3Pipeline


@pytest.fixture(scope="session")
def source(small_model: Path) -> ModelSource:
    return resolve_model(str(small_model))


@pytest.fixture(scope="session")
def pipe(source: ModelSource) -> SA3Pipeline:
    """A pipeline that tests leave as it is; 8 kHz, at most about a second."""
    return SA3Pipeline(source)


@pytest.fixture(scope="session")
def medium_pipe(small_model: Path) -> SA3Pipeline:
    return SA3Pipeline(resolve_model(str(small_model.with_name("medium"))))


@pytest.fixture
def own_pipe(source: ModelSource, pipe: SA3Pipeline) -> SA3Pipeline:
    """A pipeline whose adapters a test may change."""
    return SA3Pipeline(source, text_encoder=pipe.text_encoder)
