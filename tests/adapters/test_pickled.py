import zipfile

import pytest
import torch

from sa3lora.adapters.files import read_adapter
from sa3lora.errors import AdapterError

KEY = "model.to_cond_embed.0.parametrizations.weight.0."
STATE = {f"{KEY}lora_A": torch.randn(2, 4), f"{KEY}lora_B": torch.randn(6, 2)}


def save(path, state, **others):
    torch.save({"state_dict": state, "lora_config": {"rank": 2}, **others}, path)
    return path


def rewritten(path, change):
    """The same archive with its pickle changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return path


def test_parameters_and_half_precision_are_read(tmp_path):
    state = {key: torch.nn.Parameter(tensor.half()) for key, tensor in STATE.items()}
    adapter = read_adapter(save(tmp_path / "a.ckpt", state))
    expected = STATE[f"{KEY}lora_A"].half().float()
    assert torch.equal(adapter.tensors["model.to_cond_embed.0"]["lora_A"], expected)


def test_a_view_that_repeats_one_number_is_refused_before_it_is_filled(tmp_path):
    state = {**STATE, f"{KEY}lora_A": torch.zeros(1).expand(2, 10**13)}
    with pytest.raises(AdapterError, match=r"\(2, 10000000000000\) is more than the file holds"):
        read_adapter(save(tmp_path / "a.ckpt", state))


def test_other_types_than_plain_tensors_are_named(tmp_path):
    with pytest.raises(AdapterError, match=r"it names torch\._utils _rebuild_sparse_tensor"):
        read_adapter(save(tmp_path / "a.ckpt", {"x": torch.eye(3).to_sparse()}))
    with pytest.raises(AdapterError, match=r"it names torch LongStorage"):
        read_adapter(save(tmp_path / "b.ckpt", {"x": torch.ones(3, dtype=torch.long)}))


def test_memory_that_a_pickle_asks_for_is_never_given(tmp_path):
    path = save(tmp_path / "a.ckpt", STATE)
    rewritten(
        path, lambda data: data.replace(b"ccollections\nOrderedDict", b"c__builtin__\nbytearray")
    )
    with pytest.raises(AdapterError, match="it names __builtin__ bytearray"):
        read_adapter(path)


def test_settings_that_are_no_plain_values_are_refused(tmp_path):
    path = save(tmp_path / "a.ckpt", STATE, lora_config={"rank": torch.ones(2)})
    with pytest.raises(AdapterError, match="lora_config holds more than plain values"):
        read_adapter(path)


def test_a_compressed_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
    with pytest.raises(AdapterError, match="not an archive of stored tensors"):
        read_adapter(tmp_path / "a.ckpt")
