from __future__ import annotations

import pickle

import pytest

from sa3lora import errors
from sa3lora.errors import AdapterError, AdapterMismatchError, AudioError, Sa3LoraError


@pytest.mark.parametrize(
    "name",
    [
        "UsageError",
        "ModelError",
        "CheckpointError",
        "AdapterError",
        "AdapterMismatchError",
        "RecipeError",
        "DatasetError",
        "RunError",
        "EvaluationError",
        "AudioError",
    ],
)
def test_every_failure_can_be_caught_as_one_kind(name: str) -> None:
    assert issubclass(getattr(errors, name), Sa3LoraError)


def test_a_wrong_base_is_an_adapter_error() -> None:
    assert issubclass(AdapterMismatchError, AdapterError)


def test_an_audio_error_names_the_file_and_the_reason() -> None:
    error = AudioError("take7.wav", "0 bytes")
    assert str(error) == "take7.wav: 0 bytes"
    assert (error.path, error.reason) == ("take7.wav", "0 bytes")


def test_an_audio_error_comes_back_from_a_worker_process_as_it_was() -> None:
    error = pickle.loads(pickle.dumps(AudioError("take7.wav", "0 bytes")))  # noqa: S301
    assert str(error) == "take7.wav: 0 bytes"
    assert error.reason == "0 bytes"
