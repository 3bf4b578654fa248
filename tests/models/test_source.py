from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sa3lora.errors import CheckpointError, ModelError
from sa3lora.models import ModelSource, resolve_model
from sa3lora.models import source as source_module
from sa3lora.models.checkpoint import autoencoder_key

GONE = "model.model.transformer.layers.0.ff.ff.2.weight"


@pytest.fixture
def copied(small_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copied"
    shutil.copytree(small_model, folder, ignore=shutil.ignore_patterns("adapter*", "io.*"))
    return folder


def change(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) take away tensors of a model folder."""
    weights = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        if value is None:
            del weights[name]
        else:
            weights[name] = value
    save_file(weights, folder / "model.safetensors")


def test_a_local_folder_loads(source: ModelSource) -> None:
    again = resolve_model(str(source.folder))
    assert again.name == source.folder.name
    assert again.dit_hash == source.dit_hash
    assert len(again.dit_hash) == len(again.ae_hash) == 64
    assert again.dit_hash != again.ae_hash


def test_loaded_parts_are_frozen(source: ModelSource) -> None:
    for module in (source.load_denoiser(), source.load_autoencoder()):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
        assert not any(t.is_meta for t in module.state_dict().values())


@pytest.mark.parametrize(
    ("changes", "complaints"),
    [
        ({GONE: None}, [f"1 tensors differ\n  missing {GONE} ["]),
        ({"model.model.extra": torch.zeros(3)}, ["unexpected model.model.extra [3]"]),
        ({GONE: torch.zeros(2, 7)}, [f"{GONE} is [2, 7], must be ["]),
        (
            {GONE: None, "model.more": torch.zeros(1)},
            ["2 tensors differ", f"missing {GONE}", "unexpected model.more [1]"],
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(
    copied: Path, changes: dict[str, torch.Tensor | None], complaints: list[str]
) -> None:
    change(copied, **changes)
    with pytest.raises(CheckpointError) as caught:
        resolve_model(str(copied))
    for complaint in complaints:
        assert complaint in str(caught.value)


def test_each_hash_follows_its_own_part(copied: Path) -> None:

    def hashes() -> tuple[str, str]:
        source = resolve_model(str(copied))
        return source.dit_hash, source.ae_hash

    before = hashes()
    change(copied, **{GONE: load_file(copied / "model.safetensors")[GONE] + 1e-3})
    other_dit = hashes()
    assert other_dit[0] != before[0]
    assert other_dit[1] == before[1]
    key = "pretransform.model.bottleneck.bias"
    change(copied, **{key: load_file(copied / "model.safetensors")[key] + 1})
    other_ae = hashes()
    assert other_ae[0] == other_dit[0]
    assert other_ae[1] != before[1]


def test_an_autoencoder_alone_has_the_hash_of_the_one_inside(copied: Path) -> None:
    whole = resolve_model(str(copied))
    weights = load_file(copied / "model.safetensors")
    raw = json.loads((copied / "model_config.json").read_text())
    raw["model"] = raw["model"]["pretransform"]["config"]
    (copied / "model_config.json").write_text(json.dumps(raw))
    alone = {own: t for key, t in weights.items() if (own := autoencoder_key(key))}
    save_file(alone, copied / "model.safetensors")
    source = resolve_model(str(copied))
    assert source.ae_hash == whole.ae_hash
    assert source.dit_hash == ""
    source.load_autoencoder()
    with pytest.raises(ModelError, match="an autoencoder alone"):
        source.load_denoiser()
    with pytest.raises(ModelError, match="has no text encoder"):
        source.load_text_encoder()


def test_half_precision_files_have_the_hash_of_their_values(copied: Path) -> None:
    weights = {k: t.half() for k, t in load_file(copied / "model.safetensors").items()}
    save_file(weights, copied / "model.safetensors")
    half = resolve_model(str(copied)).dit_hash
    save_file({k: t.float() for k, t in weights.items()}, copied / "model.safetensors")
    assert resolve_model(str(copied)).dit_hash == half


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere", "~/nowhere/at/all"])
def test_an_unknown_model_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ModelError, match=r"there is no model .*Known names: tiny, small-music,"):
        resolve_model(name)


def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_config\.json is missing"):
        resolve_model(str(tmp_path))


def test_names_and_hub_ids_lead_to_the_same_repository(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(repo_id: str, patterns: list[str], *, revision: str | None = None) -> Path:
        asked.append((repo_id, revision))
        return copied

    monkeypatch.setattr(source_module, "download", fetch)
    repo = "stabilityai/stable-audio-3-medium"
    assert resolve_model("medium", revision="v1").name == resolve_model(repo).name == "medium"
    assert resolve_model("someone/else").name == "someone/else"
    assert asked == [(repo, "v1"), (repo, None), ("someone/else", None)]


@pytest.mark.parametrize("own_copy", [True, False])
def test_the_text_encoder_comes_from_the_model_s_own_repository_if_it_has_one(
    copied: Path, monkeypatch: pytest.MonkeyPatch, own_copy: bool
) -> None:
    own, other = copied, copied.with_name("sibling")
    shutil.copytree(copied / "text_encoder", other / "t5")
    shutil.rmtree(copied / "text_encoder")
    raw = json.loads((copied / "model_config.json").read_text())
    prompt = raw["model"]["conditioning"]["configs"][0]["config"]
    prompt |= {"repo_id": "x/sibling", "subfolder": "t5"}
    prompt.pop("model_path", None)
    (copied / "model_config.json").write_text(json.dumps(raw))
    asked = []

    def fetch(repo_id: str, patterns: list[str], *, revision: str | None = None) -> Path:
        asked.append(repo_id)
        if patterns == ["t5/*"] and repo_id == "x/own" and own_copy:
            shutil.copytree(other / "t5", own / "t5")
        return own if repo_id == "x/own" else other

    monkeypatch.setattr(source_module, "download", fetch)
    folder = resolve_model("x/own").text_folder()
    assert folder == (own if own_copy else other) / "t5"
    assert asked == ["x/own", "x/own"] + ([] if own_copy else ["x/sibling"])


def test_a_text_encoder_of_another_width_is_refused(copied: Path) -> None:
    raw = json.loads((copied / "model_config.json").read_text())
    source = resolve_model(str(copied))
    raw["model"]["conditioning"]["cond_dim"] = source.config.cond_dim + 1
    (copied / "model_config.json").write_text(json.dumps(raw))
    with pytest.raises((ModelError, CheckpointError), match=r"differ|wide"):
        resolve_model(str(copied)).load_text_encoder()
