import pytest
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.sites import (
    expand_brackets,
    find_layers,
    patterns_for,
    select_sites,
    site_shapes,
)
from sa3lora.errors import AdapterError


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("layers.[0-2].", ["layers.0.", "layers.1.", "layers.2."]),
        ("[2-0]", ["2", "1", "0"]),
        ("[0-1]x[8-9]", ["0x8", "0x9", "1x8", "1x9"]),
        ("[3]", ["[3]"]),
        ("[0-1,3]", ["[0-1,3]"]),
        ("[9-10]", ["9", "10"]),
    ],
)
def test_brackets_expand_as_in_the_released_tools(pattern, expanded):
    assert expand_brackets(pattern) == expanded


def test_every_linear_layer_and_convolution_is_a_candidate(root):
    names = list(find_layers(root))
    assert len(names) == 12 * 2 + 4
    assert "model.preprocess_conv" in names
    assert "conditioners.seconds_total" in names


def test_candidates_keep_their_names_and_layers_below_an_injected_adapter(root):
    before = find_layers(root)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=".*to_out"), root)
    assert find_layers(root) == before


def test_shapes_count_the_kernel_as_inputs():
    root = nn.ModuleDict({"conv": nn.Conv1d(4, 6, 3), "linear": nn.Linear(5, 7)})
    assert site_shapes(root) == {"conv": (6, 12), "linear": (7, 5)}


def test_no_patterns_select_everything(root):
    names = list(find_layers(root))
    assert select_sites(names, AdapterConfig()) == names
    assert select_sites(names, AdapterConfig(include=())) == names


def test_exclude_wins_over_include(root):
    config = AdapterConfig(include=("layers.[0-1].",), exclude=("to_out",))
    assert select_sites(find_layers(root), config) == [
        "model.transformer.layers.0.self_attn.to_qkv",
        "model.transformer.layers.1.self_attn.to_qkv",
    ]


def test_a_number_without_a_closing_dot_also_matches_longer_numbers(root):
    chosen = select_sites(find_layers(root), AdapterConfig(include=("layers.1",)))
    assert {name.split(".")[3] for name in chosen} == {"1", "10", "11"}


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("layers[0-3]", r"did you mean 'layers\.\[0-3\]\.'"),
        ("self_atn", "near names: self_attn"),
        ("zzz", "a layer is called conditioners.seconds_total"),
    ],
)
def test_a_pattern_without_a_match_is_refused_with_near_names(root, pattern, hint):
    with pytest.raises(AdapterError, match=f"adapter.include: .* matches no layer.*{hint}"):
        select_sites(find_layers(root), AdapterConfig(include=(pattern,)))


def test_patterns_that_leave_nothing_are_refused(root):
    config = AdapterConfig(include=("seconds_total",), exclude=("conditioners",))
    with pytest.raises(AdapterError, match="together leave none of 28 layers"):
        select_sites(find_layers(root), config)


def test_patterns_of_a_file_select_exactly_its_sites(root):
    names = list(find_layers(root))
    config = AdapterConfig(exclude=("to_out",))
    chosen = select_sites(names, config)
    assert patterns_for(chosen, names, config) == (None, ("to_out",))
    odd = ["model.transformer.layers.1.self_attn.to_out"]
    include, exclude = patterns_for(odd, names, config)
    assert select_sites(names, AdapterConfig(include=include, exclude=exclude)) == odd
