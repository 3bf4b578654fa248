"""Read a recipe from YAML and KEY=VALUE overrides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from sa3lora.errors import RecipeError, UsageError
from sa3lora.recipe.packaged import find_recipe
from sa3lora.recipe.problems import describe, key_paths
from sa3lora.recipe.schema import Recipe


class _StrictLoader(yaml.SafeLoader):
    """YAML as usual, but a key written twice is an error instead of the last one winning."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"a key must be a word, got {key!r}", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key} is written twice", key_node.start_mark
            )
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_recipe(
    path_or_packaged_name: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        path_or_packaged_name: A YAML file, or the name of a packaged recipe such as `tiny_style`.
        overrides: `KEY=VALUE` with a dotted key; the value is YAML, so `null`, `[a, b]` and `1e-4`
            mean what they mean in the file. The last one of a key wins.

    Returns:
        The recipe with defaults filled in.

    Raises:
        RecipeError: If it cannot be read or has problems; the message lists every one.
        UsageError: If an override is not `KEY=VALUE`.
    """
    path = find_recipe(path_or_packaged_name)
    values = _read(path)
    for override in overrides:
        _override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = describe(error, known=key_paths(Recipe))
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise RecipeError("\n  ".join([f"{path} has {count}", *lines])) from error


def _read(path: os.PathLike[str]) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is no recipe: it is not UTF-8 text.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {_where(error)}.") from error
    if content is None:
        if os.path.getsize(path) == 0:
            raise RecipeError(f"{path}: 0 bytes. Write a recipe, or copy a packaged one.")
        return {}
    if not isinstance(content, dict):
        raise RecipeError(f"{path} is no recipe: expected keys such as model and data.")
    return content


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    text = f"{problem} (line {mark.line + 1})" if mark is not None else str(problem)
    return " ".join(text.split())


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(
            f"{override!r} is no override. Write KEY=VALUE, such as train.max_steps=200."
        )
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise UsageError(
            f"the value of {override!r} is not valid YAML: {_where(error)}."
        ) from error
    section = values
    for part in parts[:-1]:
        inner = section.get(part)
        if inner is None:  # missing, or a section left empty
            inner = section[part] = {}
        if not isinstance(inner, dict):
            raise UsageError(f"{override!r}: {part} is not a section, it holds {inner!r}.")
        section = inner
    section[parts[-1]] = value
