"""Which module may import which: rows, the libraries that belong to one place, and file shape."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = {
    "errors": 0,
    "recipe": 1,
    "runs": 1,
    "audio": 1,
    "flow": 1,
    "latents": 2,
    "models": 2,
    "adapters": 2,
    "probe": 3,
    "pipeline": 3,
    "training": 4,
    "evaluation": 4,
    "tiny": 4,
    "datasets_prep": 5,
    "cli": 6,
}
ALSO = {("tiny", "training")}
NEVER = {("flow", "errors")} | {
    ("datasets_prep", other) for other, row in ROWS.items() if row in (3, 4)
}
ONLY_IN = {
    "pydantic": {"recipe"},
    "peft": {"adapters"},
    "transformers": {"models"},
    "datasets": {"latents", "datasets_prep"},
    "accelerate": {"training", "datasets_prep"},
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli"},
    "soundfile": {"audio"},
    "soxr": {"audio"},
    "av": {"audio"},
}
# A numeric function that logs or reads settings cannot be compared with its formula.
NUMERIC = ("sa3lora/flow/", "sa3lora/evaluation/frechet.py")
NOT_IN_NUMERIC = {"logging", "yaml", "pydantic", "os", "pathlib"}
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("sa3lora", "datasets_prep")
    for path in (ROOT / package).rglob("*.py")
)
TESTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))


def module_of(path: str) -> str:
    """Name the row entry that a file belongs to; the package's own files are `sa3lora`."""
    parts = Path(path).with_suffix("").parts
    if parts[0] == "datasets_prep":
        return "datasets_prep"
    return "sa3lora" if parts[1] in ("__init__", "__main__") else parts[1]


def imported(tree: ast.AST, path: str) -> Iterator[str]:
    """List dotted names that a file imports anywhere, inside functions too."""
    package = Path(path).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(part for part in (base, node.module) if part)
            yield from (f"{stem}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            first = node.args[0]
            if isinstance(first, ast.Constant):
                yield str(first.value)


def ours(name: str) -> str | None:
    """Name the row entry that an import reaches, or None for other people's code."""
    parts = name.split(".")
    if parts[0] == "datasets_prep":
        return "datasets_prep"
    if parts[0] != "sa3lora":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROWS else "sa3lora"


def violations(source: str, path: str) -> list[str]:
    """List what a file imports and should not."""
    module = module_of(path)
    if module == "sa3lora":  # lazy by construction, see test_public_api
        return []
    if module not in ROWS:
        return [f"{path}: {module} has no row; add it to the table and say why"]
    found = []
    for name in imported(ast.parse(source), path):
        other, library = ours(name), name.partition(".")[0]
        if other in ROWS and other != module and (module, other) not in ALSO:
            if ROWS[other] >= ROWS[module] or (module, other) in NEVER:
                found.append(f"{path}: {module} may not import {other} ({name})")
        elif other == "sa3lora" and name not in ("sa3lora", "sa3lora.__version__"):
            found.append(f"{path}: import the module that holds it, not the package ({name})")
        if library in ONLY_IN and module not in ONLY_IN[library]:
            homes = ", ".join(sorted(ONLY_IN[library]))
            found.append(f"{path}: {library} belongs in {homes} ({name})")
        if path.startswith(NUMERIC) and library in NOT_IN_NUMERIC:
            found.append(f"{path}: numerics take tensors and numbers, not {library}")
    return found


@pytest.mark.parametrize("path", SOURCES)
def test_a_file_imports_only_from_rows_above(path: str) -> None:
    assert violations((ROOT / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("sa3lora/models/dit.py", "import sa3lora.pipeline", "models may not import pipeline"),
        ("sa3lora/audio/x.py", "from sa3lora.runs import RunFolder", "may not import runs"),
        ("sa3lora/audio/x.py", "from ..runs import RunFolder", "may not import runs"),
        ("sa3lora/flow/x.py", "from sa3lora import errors", "flow may not import errors"),
        ("sa3lora/flow/x.py", "import logging", "numerics take tensors"),
        ("sa3lora/training/x.py", "from sa3lora.tiny import pieces", "may not import tiny"),
        ("datasets_prep/x.py", "import sa3lora.training.step", "may not import training"),
        ("sa3lora/training/x.py", "import datasets_prep.build", "may not import datasets_prep"),
        ("sa3lora/training/x.py", "def f():\n    from peft import LoraConfig", "peft belongs in"),
        ("sa3lora/latents/x.py", "import transformers", "transformers belongs in models"),
        ("sa3lora/probe.py", "import importlib\nimportlib.import_module('typer')", "typer"),
        ("sa3lora/models/x.py", "from sa3lora import SA3Pipeline", "not the package"),
        ("sa3lora/helpers.py", "", "helpers has no row"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str, complaint: str) -> None:
    (found,) = violations(source, path)
    assert complaint in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("sa3lora/tiny/pretrain.py", "from sa3lora.training.loop import run"),
        ("sa3lora/cli/prep.py", "from datasets_prep.build import prep"),
        ("sa3lora/latents/format.py", "import datasets"),
        ("sa3lora/models/a.py", "from .b import C\nfrom sa3lora.models.b import D"),
    ],
)
def test_an_allowed_import_is_let_through(path: str, source: str) -> None:
    assert violations(source, path) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("sa3lora/cli/")])
def test_the_command_line_imports_nothing_heavy_at_the_top(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    top = ast.Module(
        [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []
    )
    heavy = [
        name
        for name in imported(top, path)
        if ours(name) not in (None, "cli", "errors", "sa3lora")
        or name.partition(".")[0] in ("torch", "numpy", "rich", "scipy", "librosa", "tensorboard")
    ]
    assert heavy == []


@pytest.mark.parametrize("path", [path for path in SOURCES if "/cli/" not in path])
def test_only_the_command_line_writes_to_the_terminal(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    forbidden = {"print", "sys.stdout.write", "sys.stderr.write", "input"}
    assert forbidden.isdisjoint(calls), f"{path} writes to the terminal; log instead"


@pytest.mark.parametrize("path", SOURCES + TESTS)
def test_a_file_has_at_most_300_lines(path: str) -> None:
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", SOURCES)
def test_a_function_has_at_most_50_lines_of_code(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    long = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            length = (node.end_lineno or 0) - first.lineno + 1
            if length > 50:
                long[node.name] = length
    assert long == {}
