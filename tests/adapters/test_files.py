import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from sa3lora.adapters.config import ADAPTER_TYPES
from sa3lora.adapters.files import flat_tensors, read_adapter, validate_adapter, write_adapter
from sa3lora.errors import AdapterError

SITE = "model.transformer.project_in"
KEY = f"{SITE}.parametrizations.weight.0."


def save(path, tensors, **header):
    metadata = {"lora_config": json.dumps(header)} if header else None
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def low_rank(fan_out=5, fan_in=7, r=2, key=KEY):
    return {f"{key}lora_A": torch.ones(r, fan_in), f"{key}lora_B": torch.ones(fan_out, r)}


@pytest.mark.parametrize("adapter_type", ADAPTER_TYPES)
def test_write_then_read_is_exact(make_adapter, tmp_path, adapter_type):
    adapter = make_adapter(adapter_type, alpha=6, metadata={"sa3lora.step": "200"})
    path = tmp_path / "a.safetensors"
    write_adapter(path, adapter)
    again = read_adapter(path)
    written, found = flat_tensors(adapter), flat_tensors(again)
    assert written.keys() == found.keys()
    assert all(torch.equal(written[key], found[key]) for key in written)
    assert (again.config, again.metadata) == (adapter.config, adapter.metadata)
    assert again.content_hash == adapter.content_hash
    assert validate_adapter(path, check_values=True) == []


def test_the_safetensors_library_reads_what_is_written(make_adapter, tmp_path):
    adapter = make_adapter(sites=[SITE])
    write_adapter(tmp_path / "a.safetensors", adapter)
    tensors = load_file(tmp_path / "a.safetensors")
    assert sorted(tensors) == [f"{KEY}lora_A", f"{KEY}lora_B"]
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_equal_adapters_give_equal_files(make_adapter, tmp_path):
    for name, metadata in (("a", {"x": "1", "y": "2"}), ("b", {"y": "2", "x": "1"})):
        write_adapter(tmp_path / f"{name}.safetensors", make_adapter(metadata=metadata))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_half_precision_rounds_once(make_adapter, tmp_path):
    adapter = make_adapter(sites=[SITE])
    write_adapter(tmp_path / "a.safetensors", adapter, dtype=torch.float16)
    found = read_adapter(tmp_path / "a.safetensors").tensors[SITE]["lora_A"]
    assert torch.equal(found, adapter.tensors[SITE]["lora_A"].half().float())


def test_a_value_too_large_for_the_stored_type_is_refused(make_adapter, tmp_path):
    adapter = make_adapter(sites=[SITE])
    adapter.tensors[SITE]["lora_B"][0, 0] = 1e6
    with pytest.raises(
        AdapterError, match=r"lora_B: 1 of 48 values are not finite in torch.float1"
    ):
        write_adapter(tmp_path / "a.safetensors", adapter, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays_unless_asked(make_adapter, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(AdapterError, match=r"exists already\. Pass --force"):
        write_adapter(path, make_adapter())
    assert path.read_bytes() == b"mine"
    write_adapter(path, make_adapter(), overwrite=True)
    assert read_adapter(path).sites


def test_content_hash_tells_tensors_and_scale_apart_and_ignores_strings(make_adapter):
    plain = make_adapter()
    assert plain.content_hash == make_adapter(metadata={"sa3lora.step": "1"}).content_hash
    assert plain.content_hash != make_adapter(seed=1).content_hash
    assert plain.content_hash != make_adapter(alpha=1.0).content_hash


def test_every_problem_is_listed_at_once(tmp_path):
    tensors = {
        **low_rank(),
        "model.a.parametrizations.weight.0.lora_A": torch.ones(2, 3),
        "model.b.parametrizations.weight.0.lora_A": torch.ones(2, 3),
        "model.b.parametrizations.weight.0.lora_B": torch.ones(4, 3),
        "model.c.weight": torch.ones(2, 2),
        "model.d.parametrizations.weight.0.lora_A": torch.ones(2, 3),
        "model.d.parametrizations.weight.0.lora_B": torch.ones(4, 2),
        "model.d.parametrizations.weight.0.magnitude": torch.ones(4),
    }
    path = save(tmp_path / "a.safetensors", tensors, adapter_type="lora", rank=2)
    problems = validate_adapter(path)
    assert problems == [
        "model.c.weight: not an adapter tensor",
        "model.a.parametrizations.weight.0.lora_B: missing, lora needs it",
        "model.b: ranks differ, lora_A (2, 3) and lora_B (4, 3)",
        "model.d.parametrizations.weight.0.magnitude: unexpected in lora",
    ]
    with pytest.raises(AdapterError, match="has 4 problems"):
        read_adapter(path)


def test_validate_lists_values_that_are_not_finite_only_when_asked(tmp_path):
    tensors = low_rank()
    tensors[f"{KEY}lora_A"][0, 0] = float("nan")
    path = save(tmp_path / "a.safetensors", tensors)
    assert validate_adapter(path) == []
    assert validate_adapter(path, check_values=True) == [
        f"{KEY}lora_A: 1 of 14 values are not finite in torch.float32"
    ]
    with pytest.raises(AdapterError, match="1 of 14 values are not finite"):
        read_adapter(path)


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({}, {}, "holds no adapter tensors"),
        (low_rank(), {"adapter_type": "loha"}, "adapter_type 'loha' is none of lora"),
        (low_rank(), {"rank": 4}, "rank is 4, but its tensors have rank 2"),
        (low_rank(), {"rank": "2"}, "rank must be a positive integer, got '2'"),
        (
            low_rank() | low_rank(key=f"{SITE}.parametrizations.weight.1."),
            {},
            "holds slots 0, 1; a file is one adapter",
        ),
        (
            low_rank() | {f"{KEY}magnitude": torch.ones(7)},
            {"adapter_type": "dora-rows"},
            r"must have fan_out = 5 values, got \(7,\)",
        ),
        ({k: t.to(torch.int32) for k, t in low_rank().items()}, {}, "must be floating point"),
    ],
)
def test_what_is_not_exactly_an_adapter_is_refused(tmp_path, tensors, header, message):
    path = save(tmp_path / "a.safetensors", tensors, **header)
    with pytest.raises(AdapterError, match=message):
        read_adapter(path)
    assert validate_adapter(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.safetensors: 0 bytes"),
        (b"not at all a safetensors file", "not a safetensors file"),
        ((4).to_bytes(8, "little") + b"{a}}", "not a safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "not a safetensors file"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(AdapterError, match=message):
        read_adapter(path)
    assert len(validate_adapter(path)) == 1


def test_a_truncated_file_is_refused(make_adapter, tmp_path):
    path = tmp_path / "a.safetensors"
    write_adapter(path, make_adapter())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="truncated or damaged"):
        read_adapter(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AdapterError, match=r"nowhere.safetensors: no such file"):
        read_adapter(tmp_path / "nowhere.safetensors")


def test_ranks_come_from_shapes_and_may_differ_by_layer(tmp_path):
    other = "model.b.parametrizations.weight.0."
    tensors = low_rank(r=2) | low_rank(r=4, key=other)
    adapter = read_adapter(save(tmp_path / "a.safetensors", tensors, rank=4, alpha=8))
    assert (adapter.rank(SITE), adapter.rank("model.b")) == (2, 4)
    assert (adapter.scale(SITE), adapter.scale("model.b")) == (4.0, 2.0)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, "lora"),
        ({"magnitude": torch.ones(5)}, "dora-rows"),
        ({"magnitude": torch.ones(7)}, "dora-cols"),
        ({"magnitude_r": torch.ones(5), "magnitude_c": torch.ones(7)}, "bora"),
    ],
)
def test_without_a_header_the_type_follows_from_the_tensors(tmp_path, extra, expected):
    tensors = low_rank() | {f"{KEY}{name}": tensor for name, tensor in extra.items()}
    adapter = read_adapter(save(tmp_path / "a.safetensors", tensors))
    assert adapter.config.type == expected
    assert adapter.config.alpha == adapter.config.r == 2


@pytest.mark.parametrize(("shape", "expected"), [((1, 6), "dora-cols"), ((6, 1), "dora-rows")])
def test_old_magnitudes_with_two_axes_tell_theirs(tmp_path, shape, expected):
    tensors = low_rank(6, 6) | {f"{KEY}magnitude": torch.ones(shape)}
    adapter = read_adapter(save(tmp_path / "a.safetensors", tensors, adapter_type="dora"))
    assert adapter.config.type == expected
    assert adapter.tensors[SITE]["magnitude"].shape == (6,)


def test_an_old_file_of_square_layers_needs_to_be_told_its_axis(tmp_path):
    tensors = low_rank(6, 6) | {f"{KEY}magnitude": torch.ones(6)}
    path = save(tmp_path / "a.safetensors", tensors, adapter_type="dora")
    with pytest.raises(AdapterError, match="does not say whether its magnitudes scale rows or col"):
        read_adapter(path)
    assert read_adapter(path, legacy_axis="cols").config.type == "dora-cols"


def test_any_stored_slot_is_read_and_written_as_the_first(tmp_path):
    path = save(tmp_path / "a.safetensors", low_rank(key=f"{SITE}.parametrizations.weight.3."))
    adapter = read_adapter(path)
    assert sorted(flat_tensors(adapter)) == [f"{KEY}lora_A", f"{KEY}lora_B"]


def test_a_pickled_checkpoint_of_tensors_is_read(tmp_path):
    config = {"rank": 2, "alpha": 4, "adapter_type": "lora", "include": None, "exclude": []}
    torch.save({"state_dict": low_rank(), "lora_config": config}, tmp_path / "a.ckpt")
    adapter = read_adapter(tmp_path / "a.ckpt")
    assert adapter.scale(SITE) == 2.0
    assert adapter.config.exclude is None


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("a pickle ran code",))


def test_a_pickled_checkpoint_never_runs_code(tmp_path):
    torch.save({"state_dict": low_rank(), "lora_config": Harmful()}, tmp_path / "a.ckpt")
    with pytest.raises(AdapterError, match="not a checkpoint of plain tensors"):
        read_adapter(tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps({"state_dict": Harmful()}))
    with pytest.raises(AdapterError, match="not a checkpoint of plain tensors"):
        read_adapter(tmp_path / "b.ckpt")


def test_a_pickled_checkpoint_without_a_state_is_refused(tmp_path):
    torch.save(low_rank(), tmp_path / "a.ckpt")
    with pytest.raises(AdapterError, match="must hold a dict with state_dict"):
        read_adapter(tmp_path / "a.ckpt")
