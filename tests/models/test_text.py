from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sa3lora.errors import ModelError
from sa3lora.models import TextEncoder
from sa3lora.models.text import folder_hash


@pytest.fixture(scope="module")
def folder(small_model: Path) -> Path:
    return small_model / "text_encoder"


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder.from_folder(folder, max_length=12)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "text"))


def test_only_valid_tokens_come_back(encoder: TextEncoder) -> None:
    short, long = encoder.encode(["glass", "warm piano and slow glass"])
    assert short.shape == (len(encoder.tokenizer("glass")["input_ids"]), encoder.dim)
    assert short.shape[0] < long.shape[0]


def test_a_prompt_is_the_same_in_any_batch(encoder: TextEncoder) -> None:
    prompts = ["glass", "warm piano and slow glass", "drums"]
    together = encoder.encode(prompts)
    one_by_one = encoder.encode(prompts, batch_size=1)
    for a, b in zip(together, one_by_one, strict=True):
        assert_close(a, b)


def test_the_empty_prompt_has_no_tokens_of_its_own(encoder: TextEncoder, copied: Path) -> None:
    empty, other = encoder.encode(["", "glass"])
    assert empty.shape[0] == len(encoder.tokenizer("")["input_ids"])
    tokenizer = json.loads((copied / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None  # the released tokenizer adds no marks either
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer))
    plain = TextEncoder.from_folder(copied, max_length=12)
    empty, other = plain.encode(["", "glass"])
    assert empty.shape == (0, plain.dim)
    assert torch.isfinite(other).all()
    assert plain.encode([""])[0].shape == (0, plain.dim)


def test_a_long_prompt_is_cut_and_named(
    encoder: TextEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    (cut,) = encoder.encode(["glass " * 40])
    assert cut.shape[0] == 12
    assert "only the first 12 are used: glass" in caplog.text


def test_a_cut_prompt_keeps_the_marks_that_its_tokenizer_adds(encoder: TextEncoder) -> None:
    marks = encoder.tokenizer("")["input_ids"]
    given = encoder.tokenizer("glass " * 40)["input_ids"]
    cut = encoder.token_ids(["glass " * 40])[0]
    assert len(cut) == 12
    assert [i for i in cut if i in marks] == [i for i in given if i in marks]


def test_no_prompts_give_nothing(encoder: TextEncoder) -> None:
    assert encoder.encode([]) == []


def test_the_hash_follows_weights_and_tokenizer(folder: Path, copied: Path) -> None:
    assert folder_hash(copied) == folder_hash(folder)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        before = folder_hash(copied)
        path = copied / name
        path.write_bytes(path.read_bytes() + b" ")
        assert folder_hash(copied) != before


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no text encoder: config\.json is missing"):
        TextEncoder.from_folder(tmp_path, max_length=4)


def test_a_folder_without_weights_is_refused(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="could not be loaded as a text encoder"):
        TextEncoder.from_folder(copied, max_length=4)


def test_missing_tensors_are_named(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    lost = next(key for key in weights if "embed_tokens" in key)
    del weights[lost]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks tensors: .*embed_tokens"):
        TextEncoder.from_folder(copied, max_length=4)


def test_a_tokenizer_with_nothing_but_special_tokens_is_refused(copied: Path) -> None:
    tokenizer = json.loads((copied / "tokenizer.json").read_text())
    tokenizer["model"] = {
        "type": "BPE", "vocab": {"<unk>": 0}, "merges": [], "unk_token": "<unk>",
    }  # fmt: skip
    tokenizer["added_tokens"] = []
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="the tokenizer is empty"):
        TextEncoder.from_folder(copied, max_length=4)
