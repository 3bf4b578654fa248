from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sa3lora.errors import RecipeError
from sa3lora.recipe import (
    Recipe,
    load_recipe,
    prompt_names,
    read_prompts,
    recipe_names,
    recipes_folder,
)
from sa3lora.recipe.problems import key_paths

NAMES = [
    "continue_adapter", "dora", "few_step", "lokr", "medium_style_24gb", "medium_style_8gb",
    "small_music_style", "small_sfx", "tiny_style",
]  # fmt: skip


def test_the_recipes_that_are_promised_are_there() -> None:
    assert recipe_names() == NAMES
    assert prompt_names() == ["music", "neutral", "sfx", "tiny"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_loads_by_its_name_and_survives_being_written(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert recipe.model is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_opens_with_what_it_is_for_its_command_and_what_was_measured(name: str) -> None:
    text = (recipes_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    opening = text.split("\n\n")[0]
    assert opening.startswith("# For: ")
    assert f"sa3lora train {name} data.root=" in opening
    assert "# Measured: " in opening


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cpu", "NO"),
        ("single_gpu", "NO"),
        ("multi_gpu", "MULTI_GPU"),
        ("multi_node", "MULTI_GPU"),
        ("fsdp2", "FSDP"),
        ("fsdp2_nodes", "FSDP"),
    ],
)
def test_accelerate_accepts_its_files(name: str, kind: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = recipes_folder() / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.use_cpu is (name == "cpu")
    assert config.distributed_type == kind
    assert (config.num_machines > 1) == (name in ("multi_node", "fsdp2_nodes"))
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["mixed_precision"] == "no"


@pytest.mark.parametrize("name", ["music", "neutral", "sfx", "tiny"])
def test_prompts_are_many_and_different(name: str) -> None:
    prompts = read_prompts(name)
    assert len(prompts) >= (8 if name == "tiny" else 24)
    assert len(set(prompts)) == len(prompts)


def test_prompts_come_from_a_file_of_the_user_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# a remark\n\n  a slow waltz \nrain\n", encoding="utf-8")
    assert read_prompts(path) == ["a slow waltz", "rain"]
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="holds no prompt"):
        read_prompts(path)


def test_the_table_of_keys_names_every_key() -> None:
    page = (recipes_folder() / "README.md").read_text(encoding="utf-8")
    for key in key_paths(Recipe):
        _, _, leaf = key.partition(".")
        if leaf:
            assert f"`{key}`" in page or f"`.{leaf}`" in page, f"{key} is not explained"
    for name in NAMES:
        assert f"`{name}`" in page
