from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sa3lora.cli.main import main
from sa3lora.models import hub, random_model
from sa3lora.models import source as source_module
from sa3lora.models.fixtures import released_config


def test_every_name_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from sa3lora.models.registry import MODELS

    assert main(["models", "list"]) == 0
    table = capsys.readouterr().out
    for name in MODELS:
        assert f" {name} " in table
    assert main(["models", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(MODELS)
    assert {"about", "download_gb", "memory_gb", "repo_id", "where"} < set(rows[0])
    assert next(r for r in rows if r["name"] == "medium")["download_gb"] > 9


def test_what_is_in_the_cache_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "is_downloaded", lambda repo_id: repo_id.endswith("medium"))
    main(["models", "list", "--json"])
    where = {row["name"]: row["where"] for row in json.loads(capsys.readouterr().out)}
    assert where["medium"] == "downloaded"
    assert where["medium-base"] == "on the Hub"


def test_size_licence_and_disk_are_told_before_the_download(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small_model: Path
) -> None:
    told_before = []

    def fetch(*args: Any, **kwargs: Any) -> Path:
        told_before.append(capsys.readouterr().err)
        return small_model

    monkeypatch.setattr(source_module, "download", fetch)
    monkeypatch.setattr(hub, "free_bytes", lambda folder: 50 * 10**9)
    assert main(["models", "download", "medium"]) == 0
    for text in (
        "stabilityai/stable-audio-3-medium", "https://huggingface.co/stabilityai/",
        "9.9 GB", "50.0 GB free",
    ):  # fmt: skip
        assert text in told_before[0]
    assert capsys.readouterr().out.strip() == str(small_model)


def test_a_download_brings_the_text_encoder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small_model: Path
) -> None:
    asked = []
    monkeypatch.setattr(source_module, "download", lambda *a, **k: small_model)
    monkeypatch.setattr(
        source_module.ModelSource, "text_folder", lambda self: asked.append(self.name)
    )
    assert main(["models", "download", "small-sfx"]) == 0
    assert asked == ["small-sfx"]


def test_a_disk_that_is_too_small_is_refused_before_the_download(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "free_bytes", lambda folder: 10**9)
    monkeypatch.setattr(source_module, "download", lambda *a, **k: pytest.fail("it has begun"))
    assert main(["models", "download", "medium"]) == 2
    assert "medium needs 9.9 GB" in capsys.readouterr().err


def test_without_a_network_the_next_step_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "free_bytes", lambda folder: 50 * 10**9)
    assert main(["models", "download", "same-s"]) == 1
    err = capsys.readouterr().err
    assert "ModelError: stabilityai/SAME-S is not on this machine" in err
    assert "HF_HUB_OFFLINE is set" in err


def test_tiny_needs_no_download(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small_model: Path
) -> None:
    monkeypatch.setattr(source_module, "TINY_FOLDER", small_model)
    assert main(["models", "download", "tiny"]) == 0
    written = capsys.readouterr()
    assert "nothing to download" in written.err
    assert written.out.strip() == str(small_model)


@pytest.mark.parametrize("verb", [["download", "huge"], ["random", "huge", "-o", "x"]])
def test_an_unknown_name_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    assert main(["models", *verb]) == 2
    assert "there is no model 'huge'. Known names: tiny," in capsys.readouterr().err


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(name: str) -> dict[str, Any]:
        raw = released_config(name)
        for part in ("encoder", "decoder"):
            raw["model"][part]["config"] |= {"channels": 64, "c_mults": [1]}
        return raw

    monkeypatch.setattr(random_model, "released_config", config)


@pytest.mark.usefixtures("narrow")
def test_a_random_folder_is_written_and_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "random"
    assert main(["models", "random", "same-s", "-o", str(out), "--seed", "7", "--quiet"]) == 0
    written = capsys.readouterr()
    assert written.out == f"{out}\n"
    assert "244 tensors" in written.err
    assert "--seed 7" in (out / "README.md").read_text()
    again = tmp_path / "again"
    assert main(["models", "random", "same-s", "-o", str(again), "--seed", "7", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["name"], result["seed"], result["num_tensors"]) == ("same-s", 7, 244)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("narrow")
def test_a_folder_in_use_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    assert main(["models", "random", "same-s", "-o", str(tmp_path)]) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_each_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("list", "download", "random"):
        assert main(["models", verb, "--help"]) == 0
        assert f"sa3lora models {verb}" in capsys.readouterr().out
