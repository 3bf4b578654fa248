import json
import shutil

import torch
from safetensors.torch import load_file, save_file

from sa3lora.cli.main import main


def problems_of(capsys, path, *options):
    status = main(["validate", str(path), "--json", *options])
    found = json.loads(capsys.readouterr().out)["problems"]
    assert status == (1 if found else 0)
    return found


def test_a_whole_adapter_has_no_problems(small_model, capsys):
    path = small_model / "adapter_bora-xs.safetensors"
    assert main(["validate", str(path), "--values"]) == 0
    assert capsys.readouterr().out == f"{path}: a valid adapter\n"


def test_every_problem_of_an_adapter_is_listed(small_model, tmp_path, capsys):
    tensors = load_file(small_model / "adapter_lora.safetensors")
    removed = sorted(tensors)[0]
    broken = {key: tensor for key, tensor in tensors.items() if key != removed}
    broken["other.weight"] = torch.ones(2)
    path = tmp_path / "a.safetensors"
    save_file(broken, path)
    assert problems_of(capsys, path) == [
        "other.weight: not an adapter tensor",
        f"{removed}: missing, lora needs it",
    ]
    assert main(["validate", str(path)]) == 1
    assert capsys.readouterr().out.startswith(f"{path} (adapter) has 2 problems\n  other.weight")


def test_values_are_read_when_asked(small_model, tmp_path, capsys):
    tensors = load_file(small_model / "adapter_lora.safetensors")
    broken = sorted(tensors)[0]
    tensors[broken][0, 0] = float("inf")
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    assert problems_of(capsys, path) == []
    assert [problem.split(":")[0] for problem in problems_of(capsys, path, "--values")] == [broken]


def test_every_problem_of_a_model_is_listed(small_model, tmp_path, capsys):
    assert problems_of(capsys, small_model) == []
    tensors = load_file(small_model / "model.safetensors")
    del tensors["model.model.preprocess_conv.weight"]
    tensors["extra"] = torch.ones(1)
    shutil.copyfile(small_model / "model_config.json", tmp_path / "model_config.json")
    save_file(tensors, tmp_path / "model.safetensors")
    found = problems_of(capsys, tmp_path)
    assert len(found) == 2
    assert "missing model.model.preprocess_conv.weight" in found[0]
    assert "unexpected extra" in found[1]


def test_a_model_without_weights_and_with_a_broken_config_has_both_problems(tmp_path, capsys):
    (tmp_path / "model_config.json").write_text("{")
    found = problems_of(capsys, tmp_path)
    assert "is not JSON" in found[0]
    assert "model.safetensors is missing" in found[1]


def test_every_damaged_shard_is_listed(make_latents, tmp_path, capsys):
    root = make_latents(tmp_path / "latents")
    assert problems_of(capsys, root) == []
    shard = next(root.glob("*.arrow"))
    shutil.copyfile(shard, root / "shard-1-0.arrow")
    assert problems_of(capsys, root) == ["holds 16 clips, dataset.json says 8"]
    (root / "shard-1-0.arrow").write_bytes(shard.read_bytes()[:100])
    shard.write_bytes(b"")
    found = problems_of(capsys, root)
    assert ["shard-0-0.arrow" in found[0], "shard-1-0.arrow" in found[1]] == [True, True]


def test_every_problem_of_a_recipe_is_listed(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("adapter: {lora_rank: 8}\ntrain: {max_steps: 0}\n")
    found = problems_of(capsys, path)
    assert len(found) == 2
    assert found[0].startswith("adapter.lora_rank: unknown key")
    assert found[1].startswith("train.max_steps:")


def test_a_packaged_recipe_is_found_by_name(capsys):
    assert problems_of(capsys, "tiny_style") == []


def test_values_are_only_for_adapters(small_model, capsys):
    assert main(["validate", str(small_model), "--values"]) == 2
    assert "--values belongs to adapters" in capsys.readouterr().err
