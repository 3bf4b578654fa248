"""The real pipeline at toy size: held-out loss and a dataset as reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sa3lora.errors import DatasetError
from sa3lora.evaluation.held_out import open_held_out_loss
from sa3lora.evaluation.reference import dataset_reference, open_held_out
from sa3lora.pipeline import SA3Pipeline


@pytest.fixture(scope="module")
def small_pipeline(small_model: Path) -> SA3Pipeline:
    return SA3Pipeline.from_pretrained(str(small_model), device="cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, make_latents: Callable[..., Path]) -> Path:
    return make_latents(tmp_path_factory.mktemp("held") / "latents", tracks=5, held_out=2)


def test_the_loss_is_paired_on_held_out_tracks_only(
    small_pipeline: SA3Pipeline, dataset: Path, small_model: Path
) -> None:
    held_out = open_held_out_loss(dataset, small_pipeline, num_tuples=6)
    base, again = held_out.losses(small_pipeline), held_out.losses(small_pipeline)
    assert torch.equal(base[0], again[0])
    name = small_pipeline.load_adapter(
        small_model / "adapter_lora.safetensors", allow_other_base=True
    )
    adapter = held_out.losses(small_pipeline)
    small_pipeline.unload_adapter(name)
    (score,) = held_out.scores([*base, *adapter])
    assert held_out.probe is not None
    assert set(held_out.probe.tracks) == {"track3.wav", "track4.wav"}
    assert score.difference is not None
    expected = (adapter[0].double() - base[0].double()).mean().item()
    assert score.difference.value == pytest.approx(expected, rel=1e-6)
    assert score.context.num_units == 2
    assert "validation split" in held_out.note


def test_without_a_dataset_the_reason_is_told(small_pipeline: SA3Pipeline) -> None:
    held_out = open_held_out_loss(None, small_pipeline, num_tuples=6)
    assert held_out.losses(small_pipeline) == []
    assert held_out.scores([]) == []
    assert "no latents dataset was given" in held_out.note


def test_a_dataset_without_held_out_clips_gives_no_loss_but_a_reason(
    small_pipeline: SA3Pipeline, make_latents: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_latents(tmp_path / "all", held_out=0)
    held_out = open_held_out_loss(root, small_pipeline, num_tuples=6)
    assert held_out.probe is None
    assert "all has no validation and no test clips" in held_out.note
    parts, note = open_held_out(root)
    assert [len(part) for part in parts] == [8]
    assert "mere copying" in note


def test_a_dataset_of_another_autoencoder_is_refused(
    small_pipeline: SA3Pipeline, make_latents: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_latents(tmp_path / "foreign", ae_hash="0" * 64)
    with pytest.raises(DatasetError):
        open_held_out_loss(root, small_pipeline, num_tuples=6)


def test_a_dataset_gives_its_held_out_clips_as_audio(
    small_pipeline: SA3Pipeline, dataset: Path
) -> None:
    reference = dataset_reference(dataset, decode=small_pipeline.decode)
    pieces = list(reference.pieces())
    assert [piece.track for piece in pieces] == ["track3.wav"] * 2 + ["track4.wav"] * 2
    assert reference.num_pieces == 4
    assert {piece.sample_rate for piece in pieces} == {8000}
    assert all(piece.audio.shape[0] == 2 and piece.audio.shape[1] > 0 for piece in pieces)
    assert reference.captions == ("Genre: test 3",) * 2 + ("Genre: test 4",) * 2
    assert len(reference.hash) == 64
