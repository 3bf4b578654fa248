from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from sa3lora.errors import ModelError
from sa3lora.models import random_model, resolve_model
from sa3lora.models.config import Json
from sa3lora.models.fixtures import released_config, text_config
from sa3lora.models.random_model import random_tensor, write_random_model


def shrink(raw: Json) -> Json:
    """Keep the layout of a released configuration and make it narrow and shallow."""
    model = raw["model"]
    same = model if "encoder" in model else model["pretransform"]["config"]
    for part in ("encoder", "decoder"):
        same[part]["config"] |= {"channels": 64, "c_mults": [1], "transformer_depths": [2]}
    if "diffusion" in model:
        model["diffusion"]["config"] |= {
            "embed_dim": 128, "num_heads": 2, "depth": 2, "cond_token_dim": 64,
            "global_cond_dim": 64,
        }  # fmt: skip
        model["conditioning"]["cond_dim"] = 64
    return raw


def shrink_text(raw: Json | None) -> Json | None:
    for part in ("encoder", "decoder"):
        if raw is not None:
            raw[part] |= {
                "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
                "layer_types": ["sliding_attention", "full_attention"],
            }  # fmt: skip
    return raw


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch, small_model: Path) -> None:
    monkeypatch.setattr(random_model, "released_config", lambda n: shrink(released_config(n)))
    monkeypatch.setattr(
        random_model,
        "text_config",
        lambda name, *, vocab_size: shrink_text(text_config(name, vocab_size=vocab_size)),
    )


@pytest.mark.parametrize("name", ["small-music", "small-sfx-base", "medium-base"])
def test_a_random_model_loads_like_an_official_one(name: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    written = write_random_model(
        name, tmp_path / "out", seed=3, progress=lambda *args: seen.append(args)
    )
    source = resolve_model(str(tmp_path / "out"))
    assert source.config.is_post_trained is not name.endswith("-base")
    weights = load_file(source.weights_path)
    assert written.num_tensors == len(weights)
    assert written.num_elements == sum(t.numel() for t in weights.values())
    assert all(t.dtype == torch.float32 for t in weights.values())
    assert seen[-1] == (written.num_bytes, written.num_bytes)
    assert "random" in (source.folder / "README.md").read_text()
    assert source.text_folder().name == "t5gemma-b-b-ul2"
    embeddings = source.load_text_encoder().encode(["slow piano", "fast drums"])
    assert embeddings[0].dtype == torch.bfloat16
    assert all(torch.isfinite(e).all() and 0.3 < e.float().std() < 3 for e in embeddings)
    assert not torch.equal(embeddings[0][:1], embeddings[1][:1])


@pytest.mark.parametrize("name", ["small-music-base", "medium"])
@torch.no_grad()
def test_outputs_have_about_unit_size_and_every_weight_matters(name: str, tmp_path: Path) -> None:
    write_random_model(name, tmp_path / "out", seed=0)
    source = resolve_model(str(tmp_path / "out"))
    z = torch.randn(1, 256, 6)
    ae = source.load_autoencoder()
    audio = ae.decode(z)
    assert 0.03 < audio.std() < 1
    assert 0.1 < ae.encode(audio).std() < 3
    denoiser = source.load_denoiser()

    def velocity() -> torch.Tensor:
        cond = denoiser.condition(source_text, torch.tensor([3.0]))
        return denoiser.velocity(z, torch.tensor([0.6]), cond, keep=keep, known=z * keep[:, None])

    source_text, keep = [torch.randn(4, 64)], torch.tensor([[1.0, 1, 0, 0, 0, 0]])
    before = velocity()
    assert 0.3 < before.std() < 5
    for name_, parameter in denoiser.named_parameters():
        kept = parameter.clone()
        parameter.add_(0.5 * torch.randn(parameter.shape))
        assert not torch.equal(velocity(), before), f"{name_} is dead"
        parameter.copy_(kept)


@pytest.mark.parametrize("name", ["same-s", "same-l"])
def test_an_autoencoder_alone_has_no_prefix_and_no_text_encoder(name: str, tmp_path: Path) -> None:
    write_random_model(name, tmp_path / "out", seed=3)
    source = resolve_model(str(tmp_path / "out"))
    heads = {key.split(".")[0] for key in load_file(source.weights_path)}
    assert heads == {"encoder", "decoder", "bottleneck"}
    assert {p.name for p in source.folder.iterdir()} == {
        "README.md", "model_config.json", "model.safetensors",
    }  # fmt: skip
    source.load_autoencoder()


def test_same_seed_same_files(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random_model("small-music", tmp_path / folder, seed=seed)
    for name in ("model.safetensors", "t5gemma-b-b-ul2/model.safetensors"):
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes()
        assert first != (tmp_path / "c" / name).read_bytes()


def test_models_of_one_size_share_their_autoencoder_and_nothing_else(tmp_path: Path) -> None:
    sources = {}
    for name in ("small-music", "small-sfx-base", "same-s"):
        write_random_model(name, tmp_path / name, seed=5)
        sources[name] = resolve_model(str(tmp_path / name))
    assert len({source.ae_hash for source in sources.values()}) == 1
    assert sources["small-music"].dit_hash != sources["small-sfx-base"].dit_hash


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ModelError, match="exists and is not empty"):
        write_random_model("same-s", tmp_path, seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_random_model("same-s", tmp_path / "empty", seed=0)
    assert resolve_model(str(tmp_path / "empty")).config.dit is None


@pytest.mark.parametrize("trouble", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise trouble

    monkeypatch.setattr(random_model, "_write_text_encoder", fail)
    with pytest.raises(type(trouble)) as caught:
        write_random_model("small-music", tmp_path / "out", seed=0)
    if isinstance(caught.value, OSError):
        assert caught.value.filename == str(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_random_model("small-music", tmp_path / "whole", seed=0)
    # the model alone would fit, its text encoder would not
    monkeypatch.setattr(random_model, "free_bytes", lambda folder: written.num_bytes + 1)
    with pytest.raises(ModelError, match=r"needs [1-9]\d* MB, its disk has \d+ MB free"):
        write_random_model("small-music", tmp_path / "out", seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_streams_of_tensors_are_their_own() -> None:
    def draw(label: str) -> torch.Tensor:
        generator = random_model._generator(1, label)
        return random_tensor("x.weight", (4, 4), generator=generator)

    assert torch.equal(draw("a"), draw("a"))
    assert not torch.equal(draw("a"), draw("b"))


def test_rotary_speeds_are_not_random() -> None:
    generator = torch.Generator().manual_seed(0)
    speeds = random_tensor("a.inv_freq", (16,), generator=generator)
    assert_close(speeds[:2], torch.tensor([1.0, 10000 ** (-2 / 32)]))


@pytest.fixture
def tiny_folder(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let a small model take the place of the embedded one."""
    from sa3lora.models import fixtures

    folder = tmp_path / "tiny"
    shutil.copytree(small_model, folder, ignore=shutil.ignore_patterns("adapter*", "io.*"))
    monkeypatch.setattr(fixtures, "TINY_FOLDER", folder)
    monkeypatch.setattr(random_model, "TINY_FOLDER", folder)
    monkeypatch.setattr(random_model, "released_config", released_config)
    monkeypatch.setattr(random_model, "text_config", text_config)
    return folder


def test_tiny_too(tiny_folder: Path, tmp_path: Path) -> None:
    write_random_model("tiny", tmp_path / "out", seed=4)
    source = resolve_model(str(tmp_path / "out"))
    assert source.dit_hash != resolve_model(str(tiny_folder)).dit_hash
    assert source.load_text_encoder().encode(["glass"])[0].shape[1] == source.config.cond_dim


@pytest.fixture(params=["model_config.json", "text_encoder/tokenizer.json"])
def incomplete(request: pytest.FixtureRequest, tiny_folder: Path) -> Path:
    path = tiny_folder / str(request.param)
    path.unlink()
    return path


def test_an_installation_without_tiny_says_so(
    incomplete: Path, tmp_path: Path, capsys: Callable[[], object]
) -> None:
    with pytest.raises(ModelError, match="this installation lacks"):
        write_random_model("tiny", tmp_path / "out", seed=4)
    assert not (tmp_path / "out").exists()
