import json
import os
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sa3lora.adapters.container import encode, read_header, write_file, write_stream
from sa3lora.errors import AdapterError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}


def broken(path, change):
    """A file whose header went through `change`."""
    data = encode(TENSORS, {"k": "v"})
    size = int.from_bytes(data[:8], "little")
    text = json.dumps(change(json.loads(data[8 : 8 + size]))).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return path


def test_a_stream_is_the_same_bytes(tmp_path):
    write_file(tmp_path / "x", TENSORS, {"k": "v"})
    assert (tmp_path / "x").read_bytes() == encode(TENSORS, {"k": "v"})


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    parts = (b"new" if number else 1 // number for number in (1, 0))
    with pytest.raises(ZeroDivisionError):
        write_stream(tmp_path / "x", parts)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h | {"a": h["a"] | {"shape": [-2, -3]}}, "malformed table at 'a'"),
        (lambda h: h | {"a": h["a"] | {"shape": [2**50, 0]}}, "malformed table at 'a'"),
        (lambda h: h | {"a": h["a"] | {"shape": [2.0, 3]}}, "malformed table at 'a'"),
        (lambda h: h | {"a": h["a"] | {"shape": [1] * 9}}, "malformed table at 'a'"),
        (lambda h: h | {"a": h["a"] | {"more": 1}}, "malformed table at 'a'"),
        (lambda h: h | {"a": h["a"] | {"shape": [2, 4]}}, "shape and size disagree in a"),
        (lambda h: h | {"c": h["a"]}, "overlap or leave a gap"),
        (lambda h: h | {"x" * 600: h["a"]}, "malformed table at 'xxx"),
        (lambda h: h | {"__metadata__": {"k": 1}}, "malformed header strings"),
        (lambda h: [h], "no table"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_hold_together_is_refused(tmp_path, change, message):
    with pytest.raises(AdapterError, match=message):
        read_header(broken(tmp_path / "x", change))


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    text = b'{"a":{},"a":{}}'
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(AdapterError, match="a name is there twice"):
        read_header(tmp_path / "x")


def test_a_deeply_nested_header_is_refused(tmp_path):
    text = b"[" * 1_000_000
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(AdapterError, match="not a safetensors file"):
        read_header(tmp_path / "x")


def test_a_header_longer_than_any_is_not_even_read(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        file.write((1 << 33).to_bytes(8, "little"))
        file.truncate((1 << 33) + 8)  # sparse: takes no room
    start = time.perf_counter()
    with pytest.raises(AdapterError, match="not a safetensors file"):
        read_header(tmp_path / "x")
    assert time.perf_counter() - start < 1.0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(AdapterError, match="is no regular file"):
        read_header(tmp_path / "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200, database=None)
@given(head=st.dictionaries(st.text(max_size=4), JSON), tail=st.binary(max_size=64))
def test_whatever_a_header_says_it_is_a_table_or_an_error(tmp_path_factory, head, tail):
    text = json.dumps(head).encode("utf-8", "surrogatepass")
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(len(text).to_bytes(8, "little") + text + tail)
    try:
        header = read_header(path)
    except AdapterError:
        return
    stored = sum(entry.end - entry.start for entry in header.entries.values())
    assert header.data_start + stored == path.stat().st_size
