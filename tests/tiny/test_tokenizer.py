"""The tokenizer of the embedded model."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from sa3lora.tiny.pieces import HELD_OUT_SEED, pretraining_caption
from sa3lora.tiny.tokenizer import SPECIAL_TOKENS, save_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text_encoder")
    save_tokenizer(train_tokenizer(num_captions=1500), folder)
    return folder


def test_transformers_loads_it_offline_with_the_right_special_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    assert len(tokenizer) <= 1024
    ids = [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS]
    assert ids == [0, 1, 2, 3]
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("<pad>", "right")


def test_nothing_is_added_and_any_text_comes_back(folder):
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    for text in ("solo flute, 96 BPM", "Café 日本 🎵", "x"):
        ids = tokenizer(text).input_ids
        assert not set(ids) & {0, 1, 2, 3}
        assert tokenizer.decode(ids) == text
    assert tokenizer("").input_ids == []


def test_captions_and_free_prompts_are_short(folder):
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    captions = [pretraining_caption(HELD_OUT_SEED + i) for i in range(200)]
    assert max(len(row) for row in tokenizer(captions).input_ids) < 60
    prompt = "A beautiful piano arpeggio grows into a grand cinematic climax"
    assert len(tokenizer(prompt).input_ids) < 30


def test_an_instrument_inside_a_caption_is_one_token(folder):
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    for word in ("flute", "marimba", "harpsichord", "BPM", "minor"):
        assert len(tokenizer(f" {word}").input_ids) == 1, word
