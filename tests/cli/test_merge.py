import json
import shutil

import pytest

from sa3lora.adapters.files import read_adapter
from sa3lora.cli.main import main
from sa3lora.models.source import resolve_model


@pytest.fixture
def lora(small_model):
    return small_model / "adapter_lora.safetensors"


def test_adapters_become_one_file(lora, tmp_path, capsys):
    out = tmp_path / "one.safetensors"
    assert main(["merge", f"{lora}=0.5", f"{lora}=-0.2", "-o", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert "one lora of rank 6, 31 layers" in captured.err
    assert read_adapter(out).config.r == 6


def test_an_adapter_becomes_a_checkpoint(small_model, lora, tmp_path, capsys):
    out = tmp_path / "full"
    command = ["merge", f"{lora}=0.5", "-o", str(out), "--into-base", "--model", str(small_model)]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["base"], result["num_changed"]) == ("small", 31)
    assert resolve_model(str(out)).dit_hash != resolve_model(str(small_model)).dit_hash
    card = (out / "README.md").read_text()
    assert "| adapter_lora | 0.5 | lora, rank 3 | not told |" in card
    assert str(small_model) not in card


def test_magnitudes_merge_exactly_on_their_base(small_model, lora, tmp_path, capsys):
    dora = small_model / "adapter_dora-rows-xs.safetensors"
    out = tmp_path / "one.safetensors"
    command = ["merge", f"{lora}=0.5", f"{dora}=0.8", "-o", str(out), "--model", str(small_model)]
    assert main(command) == 0
    assert "one dora-rows of rank 6, 31 layers" in capsys.readouterr().err
    merged = read_adapter(out)
    assert (merged.config.type, merged.config.r) == ("dora-rows", 6)


@pytest.mark.parametrize("method", ["sum", "ties", "dare"])
def test_any_types_merge_at_a_rank_with_the_loss_told(small_model, lora, tmp_path, capsys, method):
    bora = small_model / "adapter_bora.safetensors"
    out = tmp_path / "one.safetensors"
    options = ["--rank", "4", "--method", method, "--model", str(small_model)]
    assert main(["merge", str(lora), str(bora), "-o", str(out), *options]) == 0
    captured = capsys.readouterr()
    assert f"the nearest lora of rank 4 ({method})" in captured.err
    assert captured.out.count("%") == 31
    assert read_adapter(out).config.r == 4
    assert (
        main(["merge", str(lora), "-o", str(out), *options[:2], *options[-2:], "--force", "--json"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["lost_energy"] < 1e-9
    assert len(result["lost_energy_by_layer"]) == 31


def test_ties_goes_into_a_checkpoint_too(small_model, lora, tmp_path, capsys):
    out = tmp_path / "full"
    options = ["--into-base", "--method", "ties", "--density", "0.3", "--model", str(small_model)]
    assert main(["merge", str(lora), f"{lora}=0.5", "-o", str(out), *options]) == 0
    assert "31 weights of small changed" in capsys.readouterr().err
    assert resolve_model(str(out)).dit_hash != resolve_model(str(small_model)).dit_hash


def test_nothing_is_replaced_unless_asked(lora, tmp_path, capsys):
    out = tmp_path / "one.safetensors"
    out.write_bytes(b"mine")
    assert main(["merge", str(lora), "-o", str(out)]) == 2
    assert "exists already. Pass --force to replace it" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert main(["merge", str(lora), "-o", str(out), "--force"]) == 0
    assert read_adapter(out).sites


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["{folder}/nowhere.safetensors"], 1, "AdapterError: "),
        (["{folder}/empty.safetensors"], 1, "empty.safetensors: 0 bytes"),
        (["{lora}=x"], 2, "the strength must be a number, got 'x'"),
        (["{lora}=0"], 1, "nothing to merge: every strength is 0"),
        (["{lora}", "{bora}"], 1, "no one adapter does what bora and lora do together"),
        (["{lora}", "--store", "float32"], 2, "--store belongs to --into-base"),
        (["{lora}", "--method", "ties"], 2, "--method ties makes full changes: pass --rank R"),
        (["{lora}", "--rank", "2"], 2, "does not tell its base model: pass --model"),
        (["{lora}", "--rank", "2", "--into-base"], 2, "exclude each other"),
        (["{lora}", "--rank", "2", "--density", "0"], 2, "above 0 and at most 1, got 0.0"),
        (["{lora}", "--into-base"], 2, "does not tell its base model: pass --model"),
        (["{lora}", "--into-base", "--model", "nowhere"], 1, "ModelError: there is no model"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    small_model, lora, tmp_path, capsys, arguments, status, message
):
    (tmp_path / "empty.safetensors").write_bytes(b"")
    names = {
        "folder": tmp_path,
        "lora": lora,
        "bora": small_model / "adapter_bora.safetensors",
    }
    filled = [argument.format(**names) for argument in arguments]
    assert main(["merge", *filled, "-o", str(tmp_path / "out.safetensors")]) == status
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty.safetensors"]


def test_an_adapter_of_another_base_is_refused(small_model, lora, tmp_path, capsys):
    from sa3lora.adapters.files import AdapterFile, write_adapter

    plain = read_adapter(lora)
    path = tmp_path / "sfx.safetensors"
    write_adapter(path, AdapterFile(plain.config, plain.tensors, {"sa3lora.base_id": "small-sfx"}))
    out = tmp_path / "out"
    command = ["merge", str(path), "-o", str(out), "--into-base", "--model", str(small_model)]
    assert main(command) == 1
    assert "was trained on small-sfx, this pipeline is small." in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--allow-other-base"]) == 0


def test_the_model_is_what_the_adapter_was_trained_on(small_model, lora, tmp_path, capsys):
    from sa3lora.adapters.files import AdapterFile, write_adapter

    base = tmp_path / "base"
    shutil.copytree(small_model, base, ignore=shutil.ignore_patterns("io.*", "adapter_*"))
    plain = read_adapter(lora)
    metadata = {"sa3lora.base_id": str(base), "sa3lora.dit_hash": resolve_model(str(base)).dit_hash}
    path = tmp_path / "a.safetensors"
    write_adapter(path, AdapterFile(plain.config, plain.tensors, metadata))
    assert main(["merge", str(path), "-o", str(tmp_path / "out"), "--into-base"]) == 0
    assert f"model: {base}, which {path} was trained on" in capsys.readouterr().err
