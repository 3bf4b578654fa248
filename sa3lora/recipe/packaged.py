"""The recipes and prompt lists that come with the package."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from sa3lora.errors import RecipeError

_PACKAGE = Path(__file__).resolve().parent.parent


def recipes_folder() -> Path:
    """Find the folder of packaged recipes.

    Returns:
        `sa3lora/_recipes` of a wheel, or `recipes` of a source checkout.

    Raises:
        RecipeError: If the installation has neither.
    """
    for folder in (_PACKAGE / "_recipes", _PACKAGE.parent / "recipes"):
        if (folder / "accelerate").is_dir():
            return folder
    raise RecipeError(f"no recipes beside {_PACKAGE}. Install sa3lora again.")


def recipe_names() -> list[str]:
    """List the packaged recipes.

    Returns:
        Names that `load_recipe` takes, sorted.
    """
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def prompt_names() -> list[str]:
    """List the packaged prompt lists.

    Returns:
        Names that `read_prompts` takes, sorted.
    """
    return sorted(path.stem for path in (recipes_folder() / "prompts").glob("*.txt"))


def find_recipe(path_or_name: str | os.PathLike[str]) -> Path:
    """Find a recipe by path, or a packaged one by name.

    Args:
        path_or_name: A file goes before a packaged recipe of the same name.

    Returns:
        Its path.

    Raises:
        RecipeError: If there is neither; the message lists the packaged ones.
    """
    return _find(path_or_name, recipe_names(), folder=recipes_folder(), suffix=".yaml")


def read_prompts(path_or_name: str | os.PathLike[str]) -> list[str]:
    """Read prompts, one a line; blank lines and lines that open with # do not count.

    Args:
        path_or_name: A text file, or a packaged list such as `music`.

    Returns:
        The prompts in order.

    Raises:
        RecipeError: If there is no such list, or it holds no prompt.
    """
    folder = recipes_folder() / "prompts"
    path = _find(path_or_name, prompt_names(), folder=folder, suffix=".txt")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is no list of prompts: it is not UTF-8 text.") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.") from error
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise RecipeError(f"{path} holds no prompt. Write one a line.")
    return prompts


def _find(
    path_or_name: str | os.PathLike[str], names: list[str], *, folder: Path, suffix: str
) -> Path:
    path = Path(path_or_name)
    if path.is_file():
        return path
    name = os.fspath(path_or_name)
    if name in names:
        return folder / f"{name}{suffix}"
    close = difflib.get_close_matches(path.stem, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    what = f"{name} is a folder" if path.is_dir() and name else f"there is no file {name!r}"
    raise RecipeError(f"{what}; the packaged ones are {', '.join(names)}.{hint}")
