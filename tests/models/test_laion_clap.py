"""LAION-CLAP at toy size; the official names are made here, the other way round."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapModel,
    ClapTextConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from sa3lora.errors import ModelError
from sa3lora.models.laion_clap import LaionClap, is_laion_folder, load_tokenizer
from sa3lora.models.laion_keys import config_of_state, convert_laion_keys, load_converted

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "piano", "slow", "drums", "fast"]


def small_config() -> ClapConfig:
    audio = ClapAudioConfig(
        patch_embeds_hidden_size=32,
        hidden_size=256,
        depths=[1, 1, 2, 1],
        num_attention_heads=[4, 8, 16, 32],
    )
    text = ClapTextConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=90,
        layer_norm_eps=1e-5,
    )
    return ClapConfig(text_config=text, audio_config=audio, projection_dim=16)


def random_clap(*, seed: int = 0) -> ClapModel:
    torch.manual_seed(seed)
    model = ClapModel(small_config()).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def official_names(model: ClapModel) -> dict[str, Tensor]:
    """Write a state dict as the official training code does, with what else it keeps there."""
    state: dict[str, Tensor] = {}
    own = model.state_dict()
    for key, tensor in own.items():
        if key.startswith("audio_model.audio_encoder."):
            name = key.replace("audio_model.audio_encoder.", "audio_branch.")
            if ".attention.self.query." in name:
                parts = [own[key.replace("query", part)] for part in ("query", "key", "value")]
                name, tensor = name.replace("attention.self.query", "attn.qkv"), torch.cat(parts)
            elif ".attention.self.key." in name or ".attention.self.value." in name:
                continue
            for new, old in (
                ("attention.output.dense", "attn.proj"),
                ("attention.self", "attn"),
                ("intermediate.dense", "mlp.fc1"),
                ("output.dense", "mlp.fc2"),
                ("layernorm_before", "norm1"),
                ("layernorm_after", "norm2"),
                ("batch_norm", "bn0"),
            ):
                name = name.replace(new, old)
        else:
            name = key.replace("text_model.", "text_branch.")
            name = name.replace("linear1", "0").replace("linear2", "2")
        state[f"module.{name}"] = tensor
    state["module.audio_branch.spectrogram_extractor.stft.conv_real.weight"] = torch.zeros(2)
    state["module.audio_branch.logmel_extractor.melW"] = torch.zeros(2)
    state["module.audio_branch.tscam_conv.weight"] = torch.zeros(2)
    state["module.audio_branch.head.bias"] = torch.zeros(2)
    state["module.audio_branch.layers.0.blocks.0.attn_mask"] = torch.zeros(2)
    state["module.text_transform.sequential.0.weight"] = torch.zeros(2)
    state["module.audio_transform.sequential.3.bias"] = torch.zeros(2)
    return state


def write_tokenizer(folder: Path) -> None:
    words = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clap")
    random_clap().save_pretrained(path)
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("official")
    write_tokenizer(path)
    content = {
        "epoch": 15,
        "name": "toy",
        "state_dict": official_names(random_clap()),
        "scores": {"esc": np.float64(90.14), "steps": np.int64(3)},
    }
    torch.save(content, path / "toy.pt")
    return path / "toy.pt"


def noise(seconds: float, *, seed: int = 0, gain: float = 0.1) -> Tensor:
    return gain * torch.randn(
        round(seconds * 48_000), generator=torch.Generator().manual_seed(seed)
    )


def test_official_names_and_ours_hold_the_same_tensors() -> None:
    model = random_clap()
    converted = convert_laion_keys(official_names(model))
    own = model.state_dict()
    absent = {key for key in own if key.endswith(("position_ids", "token_type_ids"))}
    assert converted.keys() == own.keys() - absent
    assert all(torch.equal(converted[key], own[key]) for key in converted)


def test_sizes_are_read_from_the_tensors() -> None:
    config = config_of_state(convert_laion_keys(official_names(random_clap())))
    assert config.audio_config.depths == [1, 1, 2, 1]
    assert config.audio_config.hidden_size == 256
    assert config.text_config.vocab_size == len(WORDS)
    assert config.text_config.num_hidden_layers == 2
    assert config.text_config.max_position_embeddings == 90
    assert config.projection_dim == 16


def test_the_text_tower_computes_what_roberta_computes() -> None:
    # The official text tower is RobertaModel with a projection of two layers.
    torch.manual_seed(1)
    tower = RobertaModel(
        RobertaConfig(
            vocab_size=len(WORDS),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=1,
            max_position_embeddings=90,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
        )
    ).eval()
    projection = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16))
    state = official_names(random_clap())
    state |= {f"module.text_branch.{key}": value for key, value in tower.state_dict().items()}
    state |= {f"module.text_projection.{k}": v for k, v in projection.state_dict().items()}
    model = load_converted(convert_laion_keys(state)).eval()
    ids = torch.tensor([[0, 4, 5, 2], [0, 6, 2, 1]])
    mask = (ids != 1).long()
    with torch.no_grad():
        pooled = tower(input_ids=ids, attention_mask=mask).pooler_output
        expected = F.normalize(projection(pooled), dim=-1)
        got = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_a_checkpoint_file_and_a_folder_embed_alike(folder: Path, checkpoint: Path) -> None:
    first, second = LaionClap.from_pretrained(str(folder)), LaionClap.from_checkpoint(checkpoint)
    windows, prompts = [noise(2), noise(10, seed=1)], ["slow piano", "fast drums slow"]
    torch.testing.assert_close(first.embed_audio(windows), second.embed_audio(windows))
    torch.testing.assert_close(first.embed_text(prompts), second.embed_text(prompts))
    assert second.name == "toy.pt"


def test_embeddings_have_unit_length_and_do_not_depend_on_the_batch(folder: Path) -> None:
    clap = LaionClap.from_pretrained(str(folder))
    windows, prompts = [noise(10), noise(4, seed=1)], ["slow", "fast drums slow piano"]
    audio, text = clap.embed_audio(windows), clap.embed_text(prompts)
    torch.testing.assert_close(audio.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(audio[1:], clap.embed_audio(windows[1:]), atol=1e-5, rtol=0)
    torch.testing.assert_close(text[:1], clap.embed_text(prompts[:1]), atol=1e-5, rtol=0)


def test_mel_bands_begin_at_50_hz_as_in_the_official_code(folder: Path) -> None:
    clap = LaionClap.from_pretrained(str(folder))
    rumble = torch.sin(2 * torch.pi * 20 * torch.arange(480_000) / 48_000)
    heard = clap._features([rumble.numpy()], sampling_rate=48_000, return_tensors="pt")
    default = type(clap._features)(truncation="rand_trunc", padding="repeatpad")
    louder = default([rumble.numpy()], sampling_rate=48_000, return_tensors="pt")
    assert louder["input_features"].max() > heard["input_features"].max() + 10  # dB


def test_a_window_beyond_10_s_is_refused_instead_of_cropped_at_random(folder: Path) -> None:
    with pytest.raises(ValueError, match="at most 480000 samples, got 528000"):
        LaionClap.from_pretrained(str(folder)).embed_audio([noise(11)])


def test_a_fusion_checkpoint_is_refused_by_name() -> None:
    state = official_names(random_clap())
    state["module.audio_branch.patch_embed.fusion_model.local_att.0.weight"] = torch.zeros(1)
    with pytest.raises(ModelError, match="fusion checkpoint"):
        convert_laion_keys(state)


def test_missing_unexpected_and_misshapen_tensors_are_all_listed() -> None:
    state = convert_laion_keys(official_names(random_clap()))
    del state["audio_model.audio_encoder.norm.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["audio_projection.linear1.bias"] = torch.zeros(5)
    with pytest.raises(ModelError) as caught:
        load_converted(state)
    message = str(caught.value)
    assert "missing audio_model.audio_encoder.norm.bias" in message
    assert "unexpected extra.weight" in message
    assert "audio_projection.linear1.bias is (5,), must be (16,)" in message


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match=r"x\.pt: not a readable LAION checkpoint"):
        LaionClap.from_checkpoint(tmp_path / "x.pt")
    torch.save({"epoch": 3}, tmp_path / "y.pt")
    with pytest.raises(ModelError, match=r"y\.pt: holds no state_dict"):
        LaionClap.from_checkpoint(tmp_path / "y.pt")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "z.pt")
    with pytest.raises(ModelError, match="not an official LAION-CLAP checkpoint: it has no"):
        LaionClap.from_checkpoint(tmp_path / "z.pt")


def test_a_checkpoint_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "hook": Path("x")}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="not a readable LAION checkpoint"):
        LaionClap.from_checkpoint(tmp_path / "x.pt")


def test_a_tokenizer_of_another_size_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=f"has {len(WORDS)} tokens, the text tower 50265"):
        load_tokenizer(str(folder), vocab_size=50265)


def test_a_tokenizer_that_is_not_there_is_an_error_even_offline() -> None:
    # Offline, transformers may answer with an empty tokenizer instead of an error.
    with pytest.raises(ModelError, match="roberta-base"):
        load_tokenizer("roberta-base", vocab_size=50265)


def test_a_model_that_cannot_be_had_offline_says_what_to_give() -> None:
    with pytest.raises(ModelError, match="Give a folder with its files"):
        LaionClap.from_pretrained("laion/larger_clap_music")


def test_a_folder_of_clap_is_told_by_its_config(folder: Path, tmp_path: Path) -> None:
    assert is_laion_folder(folder)
    assert not is_laion_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "other"}), encoding="utf-8")
    assert not is_laion_folder(tmp_path)
