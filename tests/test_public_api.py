from __future__ import annotations

import subprocess
import sys

import pytest

import sa3lora


def test_every_public_name_can_be_loaded() -> None:
    for name in sa3lora.__all__:
        assert getattr(sa3lora, name) is not None
        assert name in dir(sa3lora)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'sa3lora' has no attribute 'Pipeline'"):
        _ = sa3lora.Pipeline


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert sa3lora.__version__ == version("sa3lora")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, sa3lora; "
        "print([m for m in ('torch', 'numpy', 'pydantic', 'peft', 'transformers', 'typer') "
        "if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
