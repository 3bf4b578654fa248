import json

import pytest

from sa3lora.adapters.config import AdapterConfig
from sa3lora.errors import AdapterError
from sa3lora.recipe import AdapterSection


def test_all_problems_come_at_once():
    with pytest.raises(AdapterError, match=r"type must be one of lora.*; r must be.*; lora_drop"):
        AdapterConfig(type="dora", r=0, lora_dropout=1.0)


def test_alpha_is_the_rank_unless_given():
    assert AdapterConfig(r=8).scale(8) == 1.0
    assert AdapterConfig(r=8, lora_alpha=4).scale(8) == 0.5


def test_an_empty_pattern_list_is_written_as_null():
    header = json.loads(AdapterConfig(include=(), exclude=()).to_json())
    assert header["include"] is None
    assert header["exclude"] is None


def test_header_keeps_the_keys_of_other_programs():
    header = {"rank": 4, "alpha": 2, "adapter_type": "bora", "step": 4000, "base_model": "x"}
    config = AdapterConfig.from_header(header, adapter_type="bora", r=4)
    written = json.loads(config.to_json())
    assert {key: written[key] for key in header} == header


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"alpha": "16"}, r"lora_config.alpha must be a number, got '16'"),
        ({"dropout": None}, r"lora_config.dropout must be a number"),
        ({"include": "attn"}, r"lora_config.include must be a list of strings, got 'attn'"),
    ],
)
def test_a_header_value_of_the_wrong_kind_is_named(header, message):
    with pytest.raises(AdapterError, match=message):
        AdapterConfig.from_header(header, adapter_type="lora", r=4)


def test_a_recipe_section_becomes_patterns():
    section = AdapterSection(targets="attention", r=8, exclude=["layers.0."])
    config = AdapterConfig.from_section(section)
    assert config.include == (".self_attn.", ".cross_attn.")
    assert config.exclude == ("layers.0.",)
    assert (config.type, config.r, config.alpha) == ("lora", 8, 8.0)
