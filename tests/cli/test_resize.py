import dataclasses
import json

import pytest

from sa3lora.adapters.bases import HASH_KEY
from sa3lora.adapters.files import read_adapter, write_adapter
from sa3lora.cli.main import main


@pytest.fixture
def lora(small_model):
    return str(small_model / "adapter_lora.safetensors")


def test_a_rank_and_what_each_layer_loses(lora, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert main(["resize", lora, "--rank", "1", "-o", str(out)]) == 0
    captured = capsys.readouterr()
    assert read_adapter(out).config.r == 1
    assert captured.out.count("%") == 31
    assert "lora of rank 1, 31 layers" in captured.err


def test_a_size_is_kept(lora, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert (
        main(["resize", lora, "--size", "30KB", "--dtype", "float16", "-o", str(out), "--json"])
        == 0
    )
    facts = json.loads(capsys.readouterr().out)
    assert out.stat().st_size == facts["bytes"] <= 30_000
    assert 0.1 < facts["kept_energy"] < 1.0


def test_the_lowest_loss_wins(small_model, lora, make_latents, tmp_path, capsys):
    data = make_latents(tmp_path / "data")
    out = tmp_path / "out.safetensors"
    command = ["resize", lora, "--rank", "3", "--by", "loss", "--data", str(data), "--tuples", "4"]
    assert main([*command, "--model", str(small_model), "-o", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [one["rank"] for one in facts["candidates"]] == [3, 1]
    assert facts["loss"] == min(one["loss"] for one in facts["candidates"])
    assert read_adapter(out).config.r == facts["rank"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "pass either --rank R or --size SIZE"),
        (["--rank", "1", "--size", "1MB"], "pass either --rank R or --size SIZE"),
        (["--rank", "1", "--by", "loss"], "--by loss and --data DATASET belong together"),
        (["--size", "big"], "--size must be a number of bytes such as 10MB or 500KB, got big"),
        (["--size", "0"], "--size must be a number of bytes"),
    ],
)
def test_what_cannot_work_is_one_message(lora, tmp_path, capsys, options, message):
    assert main(["resize", lora, *options, "-o", str(tmp_path / "out.safetensors")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_directions_of_other_weights_are_refused(small_model, tmp_path, capsys):
    adapter = read_adapter(small_model / "adapter_lora-xs.safetensors")
    stranger = dataclasses.replace(adapter, metadata={HASH_KEY: "0" * 64})
    write_adapter(tmp_path / "a.safetensors", stranger)
    out = tmp_path / "out.safetensors"
    command = ["resize", str(tmp_path / "a.safetensors"), "--rank", "1", "-o", str(out)]
    assert main([*command, "--model", str(small_model)]) == 1
    assert "was made for other weights" in capsys.readouterr().err
    assert not out.exists()
