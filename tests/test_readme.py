"""What the README tells people to type has to exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from sa3lora.cli.main import create_app

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "recipes/README.md", "runs/README.md"]
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("recipes/*.yaml"))


def commands(text: str) -> list[list[str]]:
    """Split every `sa3lora VERB …` that stands on a line of its own or in back-ticks."""
    found = []
    joined = text.replace("\\\n", " ")
    spans = re.findall(r"`([^`\n]+)`", joined) + [
        line.lstrip("#$> \t") for line in joined.split("\n")
    ]
    for span in spans:
        match = re.search(r"(?:^|\s|/)sa3lora (?P<rest>[a-z-].*)$", span)
        if match and not span.startswith(("pip ", "python -m pip")):
            found.append(shlex.split(match["rest"], comments=True))
    return found


def missing(words: list[str]) -> str | None:
    """Say what of a command line does not exist, or None."""
    command: Any = typer.main.get_command(create_app())
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"no verb {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    known = {"--help", "-h"}.union(*(parameter.opts for parameter in command.params))
    for word in words:
        option = word.partition("=")[0]
        if re.fullmatch(r"--[a-z][a-z-]*|-[a-z]", option) and option not in known:
            return f"{command.name} has no {option}"
    return None


@pytest.mark.parametrize("page", PAGES + RECIPES)
def test_every_command_that_a_page_shows_exists(page: str) -> None:
    found = [missing(words) for words in commands((ROOT / page).read_text(encoding="utf-8"))]
    assert [problem for problem in found if problem] == []


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    text = "Say `sa3lora frobnicate x`:\n    sa3lora train r.yaml --nonsense 3 \\\n      --name a\n"
    assert [missing(words) for words in commands(text)] == [
        "no verb frobnicate",
        "train has no --nonsense",
    ]


def test_the_readme_shows_the_two_commands_that_do_everything() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("target", "command"),
    [("demo", ".venv/bin/sa3lora demo"), ("test", ".venv/bin/pytest"), ("lint", ".venv/bin/mypy")],
)
def test_make_runs_the_program_of_its_own_environment(target: str, command: str) -> None:
    result = subprocess.run(
        ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert command in result.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_fresh_clone_installs_torch_first_and_the_exact_versions(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    result = subprocess.run(
        ["make", "-n", "test"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    steps = [line for line in result.stdout.splitlines() if "pip install" in line]
    assert [step.rpartition("-c constraints.txt ")[2] for step in steps] == ["torch", "-e '.[dev]'"]
    assert "-m venv .venv" in result.stdout


def test_the_test_command_of_continuous_integration_is_that_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "\nmake test\n" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_every_dependency_has_a_range_and_an_exact_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in lines
        if line and not line.startswith("#")
    }
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name = re.split(r"[<>=\[ ]", requirement)[0].lower().replace("_", "-")
        assert name in exact, f"{name} has no exact version in constraints.txt"
    assert all(re.search(r"[<>=]", item) for item in project["dependencies"])
    assert "peft>=0.21,<0.22" in project["dependencies"]
    assert not any("+" in line for line in lines), "a local version exists on few machines"


def test_the_recipes_are_packed_into_the_wheel() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = config["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"recipes": "sa3lora/_recipes"}
    assert wheel["packages"] == ["sa3lora", "datasets_prep"]
