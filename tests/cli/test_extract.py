import json

from sa3lora.adapters.files import read_adapter
from sa3lora.cli.main import main


def test_a_merged_model_gives_its_adapter_back(small_model, tmp_path, capsys):
    lora, full = small_model / "adapter_lora.safetensors", tmp_path / "full"
    options = ["--into-base", "--store", "float32", "--model", str(small_model)]
    assert main(["merge", str(lora), "-o", str(full), *options]) == 0
    out = tmp_path / "out.safetensors"
    command = ["extract", str(small_model), str(full), "--rank", "3", "-o", str(out), "--quiet"]
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["num_sites"], facts["beyond"]) == (31, [])
    assert facts["lost_energy"] < 1e-8
    assert read_adapter(out).metadata["sa3lora.base_id"] == "small"
    assert main(command) == 2
    assert "exists already. Pass --force" in capsys.readouterr().err
