from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from sa3lora.audio import probe_audio, read_audio
from sa3lora.errors import AudioError

needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs the m4a extra")
RATE = 44100


def write_m4a(path: Path, *, seconds: float = 2.0) -> np.ndarray:  # type: ignore[type-arg]
    import av

    t = np.arange(int(RATE * seconds)) / RATE
    samples = (0.3 * np.sin(2 * np.pi * 220 * t))[None].repeat(2, axis=0).astype(np.float32)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("aac", rate=RATE, layout="stereo")
        for start in range(0, samples.shape[1], 1024):
            block = np.ascontiguousarray(samples[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate = RATE
            frame.pts = start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return samples


@pytest.mark.parametrize("read", [probe_audio, read_audio])
def test_without_pyav_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: object
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.m4a").write_bytes(b"anything")
    with pytest.raises(AudioError, match=r"a\.m4a: m4a needs PyAV: pip install sa3lora\[m4a\]"):
        read(tmp_path / "a.m4a")  # type: ignore[operator]


@needs_av
def test_m4a_comes_back_as_it_was_written(tmp_path: Path) -> None:
    samples = write_m4a(tmp_path / "a.m4a")
    audio, rate = read_audio(tmp_path / "a.m4a")
    info = probe_audio(tmp_path / "a.m4a")
    assert (rate, info.sample_rate, info.num_channels) == (RATE, RATE, 2)
    assert abs(audio.shape[1] - samples.shape[1]) <= 2048
    assert abs(info.num_samples - samples.shape[1]) <= 2048
    spectrum = np.abs(np.fft.rfft(audio[0, :RATE].numpy()))
    assert int(spectrum.argmax()) == 220
    assert 0.25 < float(audio.abs().max()) < 0.35


@needs_av
def test_a_part_of_m4a_is_what_the_whole_holds_there(tmp_path: Path) -> None:
    write_m4a(tmp_path / "a.m4a")
    whole, _ = read_audio(tmp_path / "a.m4a")
    part, _ = read_audio(tmp_path / "a.m4a", start_s=0.5, duration_s=0.25)
    assert (part == whole[:, RATE // 2 : RATE // 2 + RATE // 4]).all()


@needs_av
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_a_cut_m4a_is_refused(tmp_path: Path, share: float) -> None:
    write_m4a(tmp_path / "a.m4a")
    data = (tmp_path / "a.m4a").read_bytes()
    (tmp_path / "a.m4a").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(AudioError, match=r"a\.m4a: truncated"):
        read_audio(tmp_path / "a.m4a")


@needs_av
def test_text_named_m4a_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.m4a").write_text("This is a letter, not a song.\n" * 40)
    with pytest.raises(AudioError, match=r"a\.m4a: truncated, or no audio stream"):
        read_audio(tmp_path / "a.m4a")
