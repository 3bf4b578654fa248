from __future__ import annotations

import pytest
import torch

from sa3lora.errors import DatasetError
from sa3lora.latents.text_cache import TextCache


class LengthEncoder:
    """Embeds a prompt as its length, a row a word."""

    def __init__(self, text_hash: str = "e" * 64) -> None:
        self.text_hash = text_hash
        self.seen: list[str] = []

    def encode(self, prompts: list[str]) -> list[torch.Tensor]:
        self.seen += prompts
        return [torch.full((len(p.split()) + 1, 4), len(p) / 7) for p in prompts]


@pytest.fixture
def cache(tmp_path):
    return TextCache(tmp_path / ".text", text_hash="e" * 64)


def test_embeddings_come_back_in_bfloat16_precision(cache):
    cache.build(["a slow waltz", ""], LengthEncoder())
    expected = torch.full((4, 4), 12 / 7).bfloat16().float()
    assert torch.equal(cache.get("a slow waltz"), expected)
    assert cache.get("").shape == (1, 4)


def test_what_is_there_is_not_embedded_again(cache, tmp_path):
    cache.build(["a", "b", "a"], LengthEncoder())
    again = LengthEncoder()
    other = TextCache(tmp_path / ".text", text_hash="e" * 64)
    assert other.build(["b", "c", "a"], again) == 1
    assert again.seen == ["c"]


def test_the_real_text_encoder_gives_the_same_as_its_cache(cache, small_model, tmp_path):
    from sa3lora.models.source import resolve_model

    encoder = resolve_model(str(small_model)).load_text_encoder()
    real = TextCache(tmp_path / "real", text_hash=encoder.text_hash)
    real.build(["warm tape piano", "x"], encoder)
    expected = encoder.encode(["x"])[0].bfloat16().float()
    assert torch.equal(real.get("x"), expected)


def test_another_encoder_does_not_see_these_embeddings(cache, tmp_path):
    cache.build(["a"], LengthEncoder())
    assert TextCache(tmp_path / ".text", text_hash="f" * 64).missing(["a"]) == ["a"]


def test_building_with_another_encoder_is_refused(cache):
    with pytest.raises(DatasetError, match="for the encoder eeeeeeeeeeee, got the encoder ffff"):
        cache.build(["a"], LengthEncoder("f" * 64))


def test_an_unknown_prompt_is_named(cache):
    with pytest.raises(DatasetError, match="does not hold 'never seen'"):
        cache.get("never seen")


def test_a_damaged_file_is_named(cache, tmp_path):
    cache.build(["a"], LengthEncoder())
    (path,) = (tmp_path / ".text").rglob("*.safetensors")
    path.write_bytes(b"no")
    with pytest.raises(DatasetError, match=f"{path.name} is damaged.*Delete it"):
        TextCache(tmp_path / ".text", text_hash="e" * 64).get("a")


def test_embeddings_that_are_not_finite_are_refused(cache):
    encoder = LengthEncoder()
    encoder.encode = lambda prompts: [torch.full((1, 4), torch.nan) for _ in prompts]
    with pytest.raises(DatasetError, match="no finite embedding of 'a'"):
        cache.build(["a"], encoder)
