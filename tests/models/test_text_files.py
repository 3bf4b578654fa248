"""What is found wrong with a text encoder's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sa3lora.models.registry import TINY_FOLDER
from sa3lora.models.source import resolve_model
from sa3lora.models.text_files import local_text_folder, text_problems

WIDTH = 128  # of the embedded model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(TINY_FOLDER / "text_encoder", tmp_path / "text")
    return tmp_path / "text"


def test_the_embedded_model_holds_a_whole_text_encoder() -> None:
    source = resolve_model("tiny")
    found = local_text_folder(source.folder, source.config)
    assert found == source.text_folder()
    assert text_problems(found, width=source.config.cond_dim) == []


def test_an_autoencoder_alone_has_none(tmp_path: Path) -> None:
    assert local_text_folder(tmp_path, resolve_model("tiny").config) is None


def test_every_problem_is_listed(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    missing, misshapen, *_ = sorted(tensors)
    del tensors[missing]
    tensors[misshapen] = torch.ones(3)
    tensors["decoder.norm.weight"] = torch.ones(3)  # released folders hold a decoder too
    save_file(tensors, folder / "model.safetensors")
    (folder / "tokenizer.json").unlink()
    problems = text_problems(folder, width=WIDTH + 1)
    assert problems[0] == f"{folder / 'tokenizer.json'} is missing"
    assert problems[1] == f"{folder}: tokens are {WIDTH} wide, the model takes {WIDTH + 1}"
    assert f"missing {missing}" in problems[2]
    assert f"{misshapen} is [3]" in problems[3]
    assert len(problems) == 4


def test_of_many_tensors_the_first_few_are_named(folder: Path) -> None:
    save_file({"other": torch.ones(1)}, folder / "model.safetensors")
    problems = text_problems(folder, width=WIDTH)
    assert len(problems) == 6
    assert problems[-1].endswith("more tensors")


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"encoder": 3})])
def test_a_configuration_of_something_else_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content, encoding="utf-8")
    (problem,) = text_problems(folder, width=WIDTH)
    assert problem.startswith(f"{folder / 'config.json'} describes no T5Gemma encoder (")


def test_damaged_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not")
    (problem,) = text_problems(folder, width=WIDTH)
    assert "model.safetensors is damaged" in problem
