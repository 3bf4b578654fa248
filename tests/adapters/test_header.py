import datetime as dt

import sa3lora
from sa3lora.adapters.header import build_metadata


def test_strings_are_those_that_others_look_for():
    metadata = build_metadata(
        base_id="tiny",
        dit_hash="d",
        ae_hash="a",
        step=200,
        trigger="vinyl",
        licence="CC0-1.0",
        title="Vinyl",
        tags=("lofi", "warm"),
        date=dt.date(2026, 1, 2),
    )
    assert metadata == {
        "sa3lora.version": sa3lora.__version__,
        "sa3lora.base_id": "tiny",
        "sa3lora.dit_hash": "d",
        "sa3lora.ae_hash": "a",
        "sa3lora.step": "200",
        "sa3lora.trigger": "vinyl",
        "sa3lora.licence": "CC0-1.0",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-audio-3/lora",
        "modelspec.title": "Vinyl",
        "modelspec.date": "2026-01-02",
        "modelspec.license": "CC0-1.0",
        "modelspec.trigger_phrase": "vinyl",
        "modelspec.tags": "lofi, warm",
    }


def test_what_is_not_known_is_left_out():
    metadata = build_metadata(base_id="tiny", dit_hash="d", step=0)
    assert metadata["sa3lora.step"] == "0"
    assert not any("licen" in key or "tags" in key for key in metadata)
