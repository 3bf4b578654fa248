import logging

import pytest

from sa3lora.adapters.compat import base_name, check_base, check_one_base
from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.sites import site_shapes
from sa3lora.errors import AdapterMismatchError


def header(base_id, dit_hash):
    named = {"sa3lora.base_id": base_id, "sa3lora.dit_hash": dit_hash}
    return {key: value for key, value in named.items() if value}


def check(root, adapter, *, name="small-music-base", dit_hash="h1", **options):
    return check_base(adapter, name=name, dit_hash=dit_hash, shapes=site_shapes(root), **options)


def test_an_equal_hash_is_the_same_base_without_a_word(root, make_adapter, caplog):
    adapter = make_adapter(metadata=header("renamed", "h1"))
    with caplog.at_level(logging.INFO):
        assert check(root, adapter) == "same"
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["small-music", "stabilityai/stable-audio-3-small-music"])
def test_a_post_trained_model_is_a_sibling_of_its_base_and_is_named(
    root, make_adapter, caplog, name
):
    adapter = make_adapter(metadata=header("small-music-base", "h1"))
    assert check(root, adapter, name=name, dit_hash="h2", label="vinyl") == "sibling"
    assert caplog.messages == [f"vinyl was trained on small-music-base, used on {name}: sibling"]


def test_a_file_without_a_base_is_a_sibling_if_it_fits(root, make_adapter, caplog):
    assert check(root, make_adapter()) == "sibling"
    assert "does not name its base" in caplog.text


def test_another_base_is_refused_unless_allowed(root, make_adapter):
    adapter = make_adapter(metadata=header("small-music-base", "h1"))
    message = (
        r"runs/vinyl/adapter.safetensors was trained on small-music-base, this pipeline is "
        r"medium-base\.\nLoad small-music-base, or train the adapter again on medium-base\."
    )
    options = {"name": "medium-base", "dit_hash": "h2", "label": "runs/vinyl/adapter.safetensors"}
    with pytest.raises(AdapterMismatchError, match=message):
        check(root, adapter, **options)
    assert check(root, adapter, **options, allow_other=True) == "other"


def test_other_weights_of_the_same_name_are_refused(root, make_adapter):
    adapter = make_adapter(metadata=header("tiny", "h1"))
    with pytest.raises(AdapterMismatchError, match="other weights of the name tiny"):
        check(root, adapter, name="tiny", dit_hash="h2")


def test_a_hash_without_a_name_must_match(root, make_adapter):
    adapter = make_adapter(metadata=header(None, "h1"))
    assert check(root, adapter) == "same"
    with pytest.raises(AdapterMismatchError, match="other weights than small-music-base"):
        check(root, adapter, dit_hash="h2")


def test_shapes_must_fit_even_where_another_base_is_allowed(root, make_adapter):
    adapter = make_adapter(metadata=header("medium-base", "h9"))
    shapes = site_shapes(root) | {"model.transformer.project_in": (99, 6)}
    del shapes["model.preprocess_conv"]
    with pytest.raises(AdapterMismatchError) as failure:
        check_base(adapter, name="x", dit_hash="h1", shapes=shapes, allow_other=True)
    listed, _, advice = str(failure.value).rpartition("\n")
    assert advice.startswith("Use it on the model that it was trained on")
    assert listed.split("\n  ") == [
        "this adapter (trained on medium-base) does not fit x: 2 problems",
        "model.preprocess_conv: no such layer",
        "model.transformer.project_in.lora_B: has (16, 3), the model needs (99, 3)",
    ]


def test_a_rank_above_the_smaller_side_does_not_fit(root, make_adapter):
    adapter = make_adapter("lora-xs", r=5, sites=["conditioners.seconds_total"])
    with pytest.raises(AdapterMismatchError, match="rank 5 in a 16 x 4 layer"):
        check(root, adapter)


def test_singular_vectors_of_a_sibling_are_not_those_trained_in(root, make_adapter):
    adapter = make_adapter("lora-xs", metadata=header("small-music-base", "h1"))
    assert check(root, adapter) == "same"
    with pytest.raises(AdapterMismatchError, match="lora-xs, trained on small-music-base, and hol"):
        check(root, adapter, name="small-music", dit_hash="h2")
    assert check(root, adapter, name="small-music", dit_hash="h2", allow_other=True) == "sibling"


@pytest.mark.parametrize(
    ("named", "expected"),
    [("sa3-sm-music", "small-music-base"), ("sa3-medium", "medium-base"), ("mine", "mine")],
)
def test_names_of_the_underfit_trainer_are_understood(make_adapter, named, expected):
    adapter = make_adapter()
    extra = AdapterConfig(r=3, extra={"base_model": named})
    assert base_name(AdapterFile(extra, adapter.tensors)) == expected


def test_adapters_of_different_bases_are_not_combined(make_adapter):
    one = make_adapter(metadata=header("medium-base", None))
    two = make_adapter(metadata=header("small-sfx", None))
    sibling = make_adapter(metadata=header("medium", None))
    check_one_base([("one", one), ("sibling", sibling), ("unnamed", make_adapter())])
    with pytest.raises(
        AdapterMismatchError, match=r"one was .* medium-base\s+two was .* small-sfx"
    ):
        check_one_base([("one", one), ("two", two)])
    check_one_base([("one", one), ("two", two)], allow_other=True)
