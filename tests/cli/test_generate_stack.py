from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sa3lora.adapters.files import read_adapter, write_adapter
from sa3lora.adapters.stacked import Stacked, stack_metadata
from sa3lora.cli.main import main


def test_an_adapter_without_the_stack_it_was_trained_on_plays_and_says_so(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    below, above = small_model / "adapter_dora-rows.safetensors", tmp_path / "above.safetensors"
    stack = stack_metadata([Stacked("vinyl", read_adapter(below).content_hash, 0.5)])
    adapter = read_adapter(small_model / "adapter_lora.safetensors")
    write_adapter(above, dataclasses.replace(adapter, metadata=stack))
    quick = ["--model", str(small_model), "--steps", "1", "--duration", "0.2", "--quiet"]
    command = ["generate", "a drone", *quick, "--adapter", str(above)]
    assert main([*command, "-o", str(tmp_path / "alone.wav")]) == 0
    message = "was trained on top of vinyl at strength 0.5, which is not played"
    assert message in capsys.readouterr().err
    both = ["--adapter", f"{below}=0.5", "-o", str(tmp_path / "both.wav")]
    assert main([*command, *both]) == 0
    assert "trained on top of" not in capsys.readouterr().err
