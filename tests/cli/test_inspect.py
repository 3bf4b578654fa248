import json

import pytest

from sa3lora.adapters.files import AdapterFile, read_adapter, write_adapter
from sa3lora.adapters.header import build_metadata
from sa3lora.cli.main import main
from sa3lora.models.source import resolve_model


def inspect(capsys, *arguments):
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_adapter_tells_what_it_is(small_model, tmp_path, capsys):
    plain = read_adapter(small_model / "adapter_lora.safetensors")
    metadata = build_metadata(
        base_id="small", dit_hash="h", step=200, trigger="vinyl", licence="CC0-1.0"
    )
    path = tmp_path / "adapter.safetensors"
    write_adapter(path, AdapterFile(plain.config, plain.tensors, metadata))
    told = inspect(capsys, tmp_path)
    expected = {
        "kind": "adapter",
        "type": "lora",
        "rank": 3,
        "alpha": 6.0,
        "layers": 31,
        "base": "small",
        "dit_hash": "h",
        "step": "200",
        "trigger": "vinyl",
        "licence": "CC0-1.0",
        "content_hash": plain.content_hash,
    }
    assert {key: told[key] for key in expected} == expected
    assert told["sites"] == plain.sites
    assert sum(change["num_sites"] for change in told["changes"]) == 31
    assert all(change["norm"] > 0 for change in told["changes"])
    assert all(change["relative"] is None for change in told["changes"])


def test_changes_are_relative_to_a_model(small_model, capsys):
    path = small_model / "adapter_dora-rows.safetensors"
    told = inspect(capsys, path, "--model", small_model)
    assert told["relation"] == "sibling"
    assert all(0.0 < change["relative"] < 1.0 for change in told["changes"])


def test_people_get_a_table(small_model, capsys):
    assert main(["inspect", str(small_model / "adapter_lora.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "self_attn.to_qkv" in out
    assert "content_hash" in out


def test_a_model_folder_tells_its_hashes(small_model, capsys):
    told = inspect(capsys, small_model)
    source = resolve_model(str(small_model))
    assert told["kind"] == "model"
    assert (told["dit_hash"], told["ae_hash"]) == (source.dit_hash, source.ae_hash)
    assert (told["width"], told["depth"], told["sample_rate"]) == (128, 2, 8000)


def test_a_dataset_tells_its_counts(make_latents, tmp_path, capsys):
    root = make_latents(tmp_path / "latents")
    told = inspect(capsys, root)
    assert told["kind"] == "dataset"
    assert told["counts"]["clips"] == 8


def test_what_is_not_known_is_wrong_usage(tmp_path, capsys):
    (tmp_path / "song.wav").write_bytes(b"")
    for path, message in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "song.wav", "is neither an adapter"),
        (tmp_path, "is neither a model folder"),
    ):
        assert main(["inspect", str(path)]) == 2
        assert message in capsys.readouterr().err


def test_a_model_is_only_for_adapters(small_model, capsys):
    assert main(["inspect", str(small_model), "--model", "tiny"]) == 2
    assert "--model belongs to adapters" in capsys.readouterr().err


def test_several_adapters_give_a_conflict_report(small_model, capsys):
    path = small_model / "adapter_lora.safetensors"
    told = inspect(capsys, path, f"{path}=-1")
    assert told["totals"][0]["cosine"] == pytest.approx(1.0)
    assert told["totals"][0]["interference"] == pytest.approx(-1.0)
    assert len(told["layers"]) == 31
    assert told["layers"][0]["relative"] is None
    assert told["search"] is None


def test_a_dataset_finds_the_best_strengths_of_a_stack(small_model, make_latents, tmp_path, capsys):
    root = make_latents(tmp_path / "latents")
    paths = [small_model / f"adapter_{name}.safetensors" for name in ("lora", "bora")]
    options = ("--model", small_model, "--dataset", root, "--tuples", "4")
    told = inspect(capsys, *paths, *options)
    search = told["search"]
    losses = {tuple(entry["strengths"]): entry["loss"] for entry in search["tried"]}
    assert losses[tuple(search["best"])] == min(losses.values())
    assert search["loss_as_given"] == losses[1.0, 1.0]
    assert search["against_base"]["num_tuples"] == 4
    both = [layer for layer in told["layers"] if layer["pairs"]]
    assert both
    assert all(0.0 < share < 2.0 for layer in both for share in layer["relative"])
    assert main(["inspect", *map(str, (*paths, *options))]) == 0
    out = capsys.readouterr().out
    assert "best strengths:" in out
    assert "1 and 2: cosine" in out
    assert "self_attn.to_qkv" in out


def test_conflicts_that_need_base_weights_ask_for_the_model(small_model, capsys):
    paths = [str(small_model / f"adapter_{name}.safetensors") for name in ("lora", "bora")]
    assert main(["inspect", *paths]) == 2
    assert "pass --model" in capsys.readouterr().err
    assert main(["inspect", paths[0], "--dataset", "x"]) == 2
    assert "--dataset belongs to several adapters" in capsys.readouterr().err
