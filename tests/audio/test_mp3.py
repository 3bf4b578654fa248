from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from sa3lora.audio.mp3 import count_samples, says_its_length

WriteMp3 = Callable[..., Path]


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_frames_are_counted_as_the_decoder_delivers_them(
    tmp_path: Path, write_mp3: WriteMp3, rate: int, constant: bool
) -> None:
    path = write_mp3(tmp_path / "a.mp3", indexed=True, constant=constant, rate=rate)
    frame = 1152 if rate >= 32000 else 576
    # the index is a frame of its own, and encoders say how much silence they put around the sound
    assert 0 <= count_samples(path) - soundfile.info(path).frames <= 5 * frame


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("size", [0, 5000])
def test_an_index_is_found_behind_tags(
    tmp_path: Path, write_mp3: WriteMp3, indexed: bool, size: int
) -> None:
    path = write_mp3(tmp_path / "tagged.mp3", indexed=indexed, constant=True)
    plain = count_samples(path)
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, size >> 7, size & 0x7F]) + b"\xff" * size
    path.write_bytes(tag + path.read_bytes())
    assert says_its_length(path) is indexed
    assert count_samples(path) == plain
