"""PEFT folders: plain PEFT and diffusers compute with them what we compute."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from sa3lora.adapters.files import read_adapter, validate_adapter, write_adapter
from sa3lora.adapters.fold import AdapterStack
from sa3lora.adapters.peft_write import (
    check_peft_type,
    write_diffusers_folder,
    write_peft_folder,
)
from sa3lora.errors import AdapterError

KERNELS = {"model.preprocess_conv": (6, 1)}
HELD = ("lora", "dora-rows")


@pytest.fixture
def folded(root, run):
    """What our own stack makes of an adapter."""

    def compute(adapter):
        stack = AdapterStack(root)
        stack.add(adapter, "a")
        out = run(root)
        stack.clear()
        return out

    return compute


@pytest.mark.parametrize("adapter_type", HELD)
def test_plain_peft_computes_what_we_compute(
    root, run, folded, make_adapter, tmp_path, adapter_type
):
    adapter = make_adapter(adapter_type, alpha=5.0)
    expected = folded(adapter)
    base = run(root)
    write_peft_folder(tmp_path, adapter, kernels=KERNELS)
    model = PeftModel.from_pretrained(root, tmp_path).eval()
    torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)
    assert (expected - base).norm() > 0.1 * base.norm()


@pytest.mark.parametrize("adapter_type", HELD)
def test_sa3_to_peft_and_back_moves_no_bit(make_adapter, tmp_path, adapter_type):
    metadata = {"sa3lora.base_id": "tiny", "modelspec.title": "T"}
    write_adapter(
        tmp_path / "a.safetensors", make_adapter(adapter_type, alpha=4.5, metadata=metadata)
    )
    adapter = read_adapter(tmp_path / "a.safetensors")
    write_peft_folder(tmp_path / "peft", adapter, kernels=KERNELS)
    write_adapter(tmp_path / "b.safetensors", read_adapter(tmp_path / "peft"))
    before, after = (tmp_path / f"{name}.safetensors" for name in "ab")
    assert before.read_bytes() == after.read_bytes()
    assert validate_adapter(tmp_path / "peft", check_values=True) == []


@pytest.mark.parametrize("case", ["small", "medium"])
@pytest.mark.parametrize("adapter_type", HELD)
def test_sa3_to_diffusers_and_back_moves_no_bit(small_model, tmp_path, case, adapter_type):
    original = small_model.parent / case / f"adapter_{adapter_type}.safetensors"
    adapter = read_adapter(original)
    kernels = {site: (12, 1) for site in adapter.sites if site.endswith("_conv")}
    write_adapter(tmp_path / "a.safetensors", adapter)
    write_diffusers_folder(tmp_path / "out", adapter, kernels=kernels)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "conditioner",
        "transformer",
    ]
    write_adapter(tmp_path / "b.safetensors", read_adapter(tmp_path / "out"))
    before, after = (tmp_path / f"{name}.safetensors" for name in "ab")
    assert before.read_bytes() == after.read_bytes()


def test_fused_rows_are_in_the_order_of_diffusers(small_model, tmp_path):
    adapter = read_adapter(small_model.parent / "medium" / "adapter_lora.safetensors")
    write_diffusers_folder(tmp_path, adapter, kernels={})
    stored = load_file(tmp_path / "transformer" / "adapter_model.safetensors")
    prefix = "base_model.model.transformer_blocks.0.self_attn.to_qkv"
    ours = adapter.tensors["model.transformer.layers.0.self_attn.to_qkv"]["lora_B"]
    query, key, value, query2, key2 = ours.chunk(5)
    theirs = torch.cat([query, query2, key, key2, value])
    assert torch.equal(stored[f"{prefix}.lora_B.weight"], theirs)
    assert not torch.equal(theirs, ours)


def test_a_folder_that_peft_wrote_is_read(root, run, folded, tmp_path):
    settings = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_out", "preprocess_conv", "seconds_total"],
        use_rslora=True, rank_pattern={"layers.1.self_attn.to_out": 2},
    )  # fmt: skip
    import copy

    model = get_peft_model(copy.deepcopy(root), settings).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert adapter.rank("model.transformer.layers.1.self_attn.to_out") == 2
    torch.testing.assert_close(folded(adapter), run(model), rtol=1e-5, atol=1e-5)


def test_the_weights_beside_their_settings_stand_for_the_folder(make_adapter, tmp_path):
    adapter = make_adapter(alpha=7.0)
    write_peft_folder(tmp_path, adapter, kernels=KERNELS)
    assert read_adapter(tmp_path / "adapter_model.safetensors").content_hash == adapter.content_hash


def test_ranks_that_differ_survive(root, run, make_adapter, folded, tmp_path):
    adapter = make_adapter(r=2, alpha=3.0)
    site = "model.transformer.layers.1.self_attn.to_out"
    adapter.tensors[site].update(make_adapter(r=5, sites=[site]).tensors[site])
    expected = folded(adapter)
    write_peft_folder(tmp_path, adapter, kernels=KERNELS)
    assert read_adapter(tmp_path).content_hash == adapter.content_hash
    model = PeftModel.from_pretrained(root, tmp_path).eval()
    torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adapter_type", ["dora-cols", "bora", "lora-xs", "bora-xs"])
def test_a_type_that_peft_lacks_is_refused(make_adapter, adapter_type):
    with pytest.raises(AdapterError, match=rf"PEFT has no {adapter_type}: .* --approximate --rank"):
        check_peft_type(make_adapter(adapter_type))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type must be LORA, got 'LOHA'"),
        ({"bias": "all"}, "bias all has no place in an SA3 adapter"),
        ({"use_qalora": True}, "use_qalora has no place"),
        ({"r": 5}, "rank 3, adapter_config.json says 5"),
        ({"lora_alpha": "4"}, "lora_alpha must be a finite number, got 4"),
        ({"rank_pattern": {"(a+)+": 2}}, "rank_pattern must map layer names, without repetition"),
    ],
)
def test_settings_that_sa3_cannot_hold_are_named(make_adapter, tmp_path, change, message):
    write_peft_folder(tmp_path, make_adapter(), kernels=KERNELS)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(AdapterError, match=message):
        read_adapter(tmp_path)


def test_a_tensor_that_is_no_lora_is_named(make_adapter, tmp_path):
    write_peft_folder(tmp_path, make_adapter(), kernels=KERNELS)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "base_model.model.model.x.lora_magic": torch.ones(2)}, file)
    with pytest.raises(AdapterError, match=r"lora_magic: not a tensor of a LoRA in PEFT"):
        read_adapter(tmp_path)


def test_a_folder_that_is_no_adapter_is_refused(tmp_path):
    with pytest.raises(AdapterError, match=r"is a folder without adapter_config\.json"):
        read_adapter(tmp_path)


def test_a_layer_that_diffusers_lacks_is_named(make_adapter, tmp_path):
    with pytest.raises(AdapterError, match=r"no such layers\s+conditioners\.seconds_total"):
        write_diffusers_folder(tmp_path / "out", make_adapter(), kernels=KERNELS)
    assert not (tmp_path / "out").exists()


def test_one_half_of_a_diffusers_folder_is_an_adapter_too(small_model, tmp_path):
    adapter = read_adapter(small_model / "adapter_lora.safetensors")
    write_diffusers_folder(tmp_path, adapter, kernels={})
    shutil.rmtree(tmp_path / "conditioner")
    read = read_adapter(tmp_path)
    assert set(adapter.sites) - set(read.sites) == {
        "conditioners.seconds_total.embedder.embedding.1"
    }
