from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sa3lora.audio.containers import ends_early


def wav(path: Path, *, format: str = "WAV", subtype: str = "PCM_16") -> bytes:  # noqa: A002
    samples = np.linspace(-0.5, 0.5, 9001)[:, None].repeat(2, axis=1)
    soundfile.write(path, samples, 16000, format=format, subtype=subtype)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("format_", "subtype"),
    [("WAV", "PCM_16"), ("WAVEX", "PCM_24"), ("AIFF", "PCM_16"), ("OGG", "VORBIS")],
)
def test_one_missing_byte_is_found_and_none_is_let_through(
    tmp_path: Path, format_: str, subtype: str
) -> None:
    data = wav(tmp_path / "whole", format=format_, subtype=subtype)
    assert not ends_early(tmp_path / "whole")
    if format_ == "AIFF" and data[-1:] == b"\0":  # only a chunk that pads to an even size
        data = data.rstrip(b"\0")
    (tmp_path / "cut").write_bytes(data[:-1])
    assert ends_early(tmp_path / "cut")


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_wav_written_into_a_pipe_has_no_size_to_miss(tmp_path: Path, size: int) -> None:
    data = bytearray(wav(tmp_path / "whole"))
    at = data.index(b"data")
    data[at + 4 : at + 8] = struct.pack("<I", size)
    (tmp_path / "streamed").write_bytes(data)
    assert not ends_early(tmp_path / "streamed")


def test_what_follows_the_last_ogg_page_of_a_stream_does_not_matter(tmp_path: Path) -> None:
    data = wav(tmp_path / "whole", format="OGG", subtype="VORBIS")
    (tmp_path / "tagged").write_bytes(data + b"TAG some other program's remark")
    assert not ends_early(tmp_path / "tagged")


@pytest.mark.parametrize("kept", [3, 10, 26])
def test_an_ogg_cut_inside_the_header_of_a_page_is_found(tmp_path: Path, kept: int) -> None:
    data = wav(tmp_path / "whole", format="OGG", subtype="VORBIS")
    (tmp_path / "cut").write_bytes(data[: data.rindex(b"OggS") + kept])
    assert ends_early(tmp_path / "cut")


def test_a_format_without_a_size_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("OggX and more text")
    assert not ends_early(tmp_path / "text")
