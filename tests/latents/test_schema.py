from __future__ import annotations

from types import SimpleNamespace

import pytest

from sa3lora.errors import DatasetError
from sa3lora.latents.schema import ClipRow, DatasetMeta, check_model, row_features


def make_row(**changes) -> ClipRow:
    values = {
        "clip_id": "a", "num_frames": 2, "caption": "Été", "caption_source": "sidecar",
        "tags": {"genre": "jazz", "bpm": "120"}, "duration_s": 0.1, "start_s": 0.3,
        "source": "x/é.wav", "source_sha256": "0", "source_duration_s": 1.0, "split": "train",
    }  # fmt: skip
    return ClipRow(**(values | changes))


def make_meta(**changes) -> DatasetMeta:
    values = {
        "model": "small-music", "ae_hash": "a" * 64, "sample_rate": 8000, "ratio": 32,
        "channels": 12, "counts": {}, "seconds": {}, "captions": {}, "fingerprint": "f",
    }  # fmt: skip
    return DatasetMeta(**(values | changes))


def test_a_row_survives_its_columns():
    row = make_row(licence="CC0")
    assert ClipRow.from_columns(row.to_columns() | {"latent": [1.0]}) == row


def test_a_row_has_the_columns_of_the_file():
    assert {*make_row().to_columns(), "latent"} == set(row_features())


def test_meta_survives_json():
    meta = make_meta(skipped=[{"source": "a", "reason": "0 bytes"}])
    assert DatasetMeta.from_json(meta.to_json(), name="dataset.json") == meta


def test_meta_with_a_missing_key_is_refused():
    values = make_meta().to_json()
    del values["ratio"]
    with pytest.raises(DatasetError, match="damaged: it lacks ratio"):
        DatasetMeta.from_json(values, name="dataset.json")


def test_another_autoencoder_is_refused_and_the_fitting_model_named():
    other = SimpleNamespace(name="medium", ae_hash="b" * 64)
    with pytest.raises(DatasetError, match=r"latents of small-music .*medium has another") as info:
        check_model(make_meta(), other)
    assert "Use small-music" in str(info.value)


def test_a_sibling_with_the_same_autoencoder_fits():
    check_model(make_meta(), SimpleNamespace(name="small-music-base", ae_hash="a" * 64))
