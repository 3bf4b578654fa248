"""The small CLAP: shapes, strict loading, windows of any length."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close

from sa3lora.errors import ModelError
from sa3lora.models.clap import ClapConfig, TinyClap, config_from_dict, config_to_dict


def _tokenizer():
    vocab = {"<pad>": 0, "<unk>": 1, "flute": 2, "solo": 3, "drums": 4}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture(scope="module")
def clap():
    torch.manual_seed(0)
    config = ClapConfig(audio_dim=32, audio_depth=1, text_dim=32, text_depth=1, vocab_size=8)
    return TinyClap(config, _tokenizer()).eval().requires_grad_(False)


@pytest.fixture
def folder(clap, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(clap.config)))
    (tmp_path / "tokenizer.json").write_text(clap.tokenizer.to_str())
    save_file(clap.state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def _noise(seconds, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(round(16000 * seconds), generator=generator)


def test_the_released_size_fits_3_megabytes_in_half_precision():
    model = TinyClap(ClapConfig(), _tokenizer())
    assert 2 * sum(p.numel() for p in model.parameters()) < 2.9e6


def test_embeddings_have_unit_norm_and_one_width(clap):
    audio = clap.embed_audio([_noise(1.0), _noise(10.0)])
    text = clap.embed_text(["solo flute", "drums", ""])
    assert audio.shape == (2, 128)
    assert text.shape == (3, 128)
    assert_close(audio.norm(dim=1), torch.ones(2))
    assert_close(text.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("seconds", [1.0, 2.345, 5.0])
def test_a_window_embeds_alone_as_beside_a_longer_one(clap, seconds):
    window = _noise(seconds)
    together = clap.embed_audio([window, _noise(8.0, seed=1)])[0]
    assert_close(together, clap.embed_audio([window])[0], atol=2e-4, rtol=0)


def test_a_prompt_embeds_alone_as_beside_a_longer_one(clap):
    together = clap.embed_text(["flute", "solo drums solo drums solo"])[0]
    assert_close(together, clap.embed_text(["flute"])[0], atol=1e-5, rtol=0)


def test_nothing_gives_no_rows(clap):
    assert clap.embed_audio([]).shape == (0, 128)
    assert clap.embed_text([]).shape == (0, 128)


def test_more_windows_than_a_batch_keep_their_order(clap):
    windows = [_noise(0.5, seed=i) for i in range(40)]
    everything = clap.embed_audio(windows)
    assert_close(everything[37], clap.embed_audio([windows[37]])[0], atol=2e-4, rtol=0)


@pytest.mark.parametrize("shape", [(2, 16000), (100,)])
def test_stereo_and_too_short_windows_are_refused(clap, shape):
    with pytest.raises(ModelError, match=r"mono windows .* at least 0.5 s at 16000 Hz, got shape"):
        clap.embed_audio([torch.zeros(shape)])


def test_matching_pairs_have_the_smaller_contrastive_loss(clap):
    rows = torch.eye(8, 128)
    assert clap.contrastive_loss(rows, rows) < clap.contrastive_loss(rows, rows.flip(0)) - 1


def test_the_loss_reaches_both_towers_and_the_temperature():
    model = TinyClap(ClapConfig(audio_dim=32, text_dim=32, vocab_size=8), _tokenizer())
    frames = torch.tensor([[True] * 50] * 2)
    audio = model.audio(torch.stack([_noise(1.0), _noise(1.0, 1)]), frames)
    loss = model.contrastive_loss(audio, model.text(*model.tokenize(["solo flute", "drums"])))
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_save_then_load_is_bit_exact(clap, folder):
    loaded = TinyClap.from_pretrained(folder)
    assert loaded.config == clap.config
    assert (loaded.name, loaded.sample_rate, loaded.window_s) == ("tiny-clap", 16000, 5.0)
    window = [_noise(2.0)]
    assert torch.equal(loaded.embed_audio(window), clap.embed_audio(window))
    assert torch.equal(loaded.embed_text(["solo flute"]), clap.embed_text(["solo flute"]))


def test_half_precision_files_load_as_float32(clap, folder):
    halves = {name: tensor.half() for name, tensor in clap.state_dict().items()}
    save_file(halves, folder / "model.safetensors")
    assert {p.dtype for p in TinyClap.from_pretrained(folder).parameters()} == {torch.float32}


def test_every_wrong_tensor_is_listed(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["log_scale"]
    tensors["stray"] = torch.zeros(1)
    tensors["text.head.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        TinyClap.from_pretrained(folder)
    for part in ("missing log_scale", "unexpected stray", r"text.head.bias is (3,), not (128,)"):
        assert part in str(caught.value)


def test_a_folder_without_its_files_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"lacks config.json, model.safetensors, tokenizer.json"):
        TinyClap.from_pretrained(tmp_path)


def test_a_broken_weights_file_is_one_message(folder):
    (folder / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(ModelError, match="could not be read as a CLAP model"):
        TinyClap.from_pretrained(folder)


def test_an_unknown_key_of_the_configuration_is_named():
    raw = config_to_dict(ClapConfig())
    assert config_from_dict(json.loads(json.dumps(raw))) == ClapConfig()
    with pytest.raises(ValueError, match="widthh"):
        config_from_dict({**raw, "widthh": 3})
