import json

import pytest
import torch

from sa3lora.adapters import convert as conversion
from sa3lora.adapters.files import read_adapter
from sa3lora.cli.main import main
from sa3lora.errors import AdapterError


@pytest.fixture
def run(small_model, tmp_path, capsys):
    def convert(kind, *options, name="out", status=0):
        source = small_model / f"adapter_{kind}.safetensors"
        out = tmp_path / name
        command = ["convert", str(source), "--model", str(small_model), "-o", str(out), *options]
        assert main(command) == status
        return out, capsys.readouterr()

    return convert


@pytest.mark.parametrize("to", ["peft", "diffusers"])
@pytest.mark.parametrize("kind", ["lora", "dora-rows"])
def test_there_and_back_is_proven_and_moves_no_bit(run, small_model, tmp_path, capsys, kind, to):
    out, captured = run(kind, "--to", to)
    assert "31 of 31 layers converted, the model has 31" in captured.err
    assert "self_attn.to_qkv" in captured.out
    back = tmp_path / "back.safetensors"
    command = ["convert", str(out), "--model", str(small_model), "-o", str(back), "--json"]
    assert main(command) == 0
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert max(group["relative"] for group in errors) == 0.0
    original = read_adapter(small_model / f"adapter_{kind}.safetensors")
    assert read_adapter(back).content_hash == original.content_hash


def test_a_type_that_peft_lacks_is_written_only_when_asked(run, tmp_path):
    _, captured = run("bora", "--to", "peft", status=1)
    assert "PEFT has no bora" in captured.err
    assert list(tmp_path.iterdir()) == []
    out, captured = run("bora", "--to", "peft", "--approximate", "--rank", "6")
    assert "lost by rank 6" in captured.out
    assert (read_adapter(out).config.type, read_adapter(out).config.r) == ("lora", 6)


def test_lora_xs_becomes_an_exact_lora(run):
    _, captured = run("lora-xs", "--to", "diffusers", "--approximate", "--rank", "3", "--json")
    facts = json.loads(captured.out)
    assert max(group["relative"] for group in facts["approximation"]) < 1e-5
    assert max(facts["lost_energy"].values()) < 1e-9


def test_half_precision_halves_the_file(run):
    whole, _ = run("lora", name="a.safetensors")
    half, _ = run("lora", "--dtype", "float16", name="b.safetensors")
    assert half.stat().st_size < 0.7 * whole.stat().st_size


def test_bases_come_along_when_asked(run):
    plain, _ = run("bora-xs", name="a.safetensors")
    carried, _ = run("bora-xs", "--with-bases", name="b.safetensors")
    assert not read_adapter(plain).has_bases
    assert read_adapter(carried).has_bases
    assert read_adapter(plain).metadata["sa3lora.bases_hash"]


def test_a_result_that_differs_is_never_put_in_place(run, tmp_path, monkeypatch):
    write = conversion.write_peft_folder

    def wrong(out, adapter, **options):
        site = "model.transformer.layers.1.ff.ff.2"
        spoilt = {**adapter.tensors[site], "lora_A": adapter.tensors[site]["lora_A"].flip(0)}
        write(out, type(adapter)(adapter.config, {**adapter.tensors, site: spoilt}), **options)

    monkeypatch.setattr(conversion, "write_peft_folder", wrong)
    _, captured = run("lora", "--to", "peft", status=1)
    assert "1 layers do not do what the source does" in captured.err
    assert "model.transformer.layers.1.ff.ff.2: " in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_is_no_number_does_not_pass():
    from sa3lora.adapters.proof import LayerError

    nan = LayerError("x", float("nan"), 1.0, 1.0)
    with pytest.raises(AdapterError, match="1 layers do not do what the source does"):
        conversion.check_errors([nan], dtype=torch.float32)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--to", "peft", "--rank", "3"], 2, "--approximate and --rank R belong together"),
        (["--to", "peft", "--with-bases"], 2, "--with-bases is for -xs adapters and --to sa3"),
        (["--to", "sa3"], 1, "must be called NAME.safetensors"),
        (["--to", "gguf"], 2, "Invalid value for '--to'"),
    ],
)
def test_what_cannot_work_is_one_message(run, tmp_path, options, status, message):
    _, captured = run("lora", *options, status=status)
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_only_an_earlier_result_is_replaced(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "exists already" in run("lora", "--to", "peft", status=1)[1].err
    assert "holds mine.txt" in run("lora", "--to", "peft", "--force", status=1)[1].err
    (tmp_path / "out" / "mine.txt").unlink()
    run("lora", "--to", "peft", "--force")
    run("lora", "--to", "peft", "--force")
