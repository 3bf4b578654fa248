import logging

import pytest

from sa3lora.adapters.find import find_adapter
from sa3lora.errors import AdapterError


def _touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_a_file_and_a_peft_folder_stand_for_themselves(tmp_path):
    file = _touch(tmp_path / "a.ckpt")
    assert find_adapter(file) == file
    for name in ("plain/adapter_config.json", "diffusers/transformer/adapter_config.json"):
        _touch(tmp_path / name)
        folder = tmp_path / name.split("/")[0]
        assert find_adapter(folder) == folder


def test_a_run_stands_for_its_adapter_and_until_then_for_its_newest_checkpoint(tmp_path, caplog):
    run = tmp_path / "run"
    for step in ("step-00000002", "step-00000010"):
        newest = _touch(run / "checkpoints" / step / "adapter.safetensors")
    (run / "checkpoints" / "step-00000012").mkdir()
    (run / "checkpoints" / ".writing-00000014").mkdir()
    with caplog.at_level(logging.WARNING):
        assert find_adapter(run) == newest
    assert "run is not finished: taking its newest checkpoint, step-00000010" in caplog.text
    assert find_adapter(run / "checkpoints") == newest
    assert find_adapter(newest.parent) == newest
    finished = _touch(run / "adapter.safetensors")
    assert find_adapter(run) == finished


def test_a_run_of_a_type_without_a_file_stands_for_its_folder(tmp_path):
    _touch(tmp_path / "run" / "adapter" / "adapter_config.json")
    assert find_adapter(tmp_path / "run") == tmp_path / "run" / "adapter"


def test_what_holds_no_adapter_is_refused(tmp_path):
    with pytest.raises(AdapterError, match=r"nowhere: no such file\. Check the path"):
        find_adapter(tmp_path / "nowhere")
    with pytest.raises(AdapterError, match=r"is a folder without adapter\.safetensors"):
        find_adapter(tmp_path)
