from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest
import soundfile
import torch

from sa3lora.audio import probe_audio, read_audio, wav_bytes, write_audio
from sa3lora.errors import AudioError


@pytest.fixture
def audio() -> torch.Tensor:
    ramp = torch.linspace(-0.9, 0.9, 24001)
    return torch.stack([ramp, ramp.flip(0) * 0.5])


def test_wav_gives_back_every_bit_and_peaks_above_1(tmp_path: Path, audio: torch.Tensor) -> None:
    write_audio(tmp_path / "a.wav", audio * 3, 44100)
    again, rate = read_audio(tmp_path / "a.wav")
    assert rate == 44100
    assert torch.equal(again, audio * 3)


def test_equal_sound_gives_equal_bytes_whenever_it_is_written(
    tmp_path: Path, audio: torch.Tensor
) -> None:
    tags = {"title": "odd"}  # an odd chunk before the one that holds the time
    write_audio(tmp_path / "a.wav", audio, 44100, tags=tags)
    payload = (tmp_path / "a.wav").read_bytes()
    peak = payload.index(b"PEAK")
    version_and_time = payload[peak + 8 : peak + 16]
    assert version_and_time == bytes([1, 0, 0, 0, 0, 0, 0, 0])
    assert probe_audio(tmp_path / "a.wav").tags == tags


@pytest.mark.parametrize("suffix", [".flac", ".aif", ".aiff"])
def test_24_bits_are_kept(tmp_path: Path, audio: torch.Tensor, suffix: str) -> None:
    write_audio(tmp_path / f"a{suffix}", audio, 44100)
    torch.testing.assert_close(read_audio(tmp_path / f"a{suffix}")[0], audio, atol=2**-23, rtol=0)


@pytest.mark.parametrize("suffix", [".mp3", ".ogg", ".opus", ".OGG"])
def test_a_compressed_file_is_as_long_as_what_was_written(
    tmp_path: Path, audio: torch.Tensor, suffix: str
) -> None:
    write_audio(tmp_path / f"a{suffix}", audio, 48000)
    info = probe_audio(tmp_path / f"a{suffix}")
    assert (info.num_channels, info.num_samples, info.sample_rate) == (2, 24001, 48000)


def test_tags_are_written(tmp_path: Path, audio: torch.Tensor) -> None:
    write_audio(tmp_path / "a.flac", audio, 44100, tags={"title": "Été", "license": "CC0"})
    assert probe_audio(tmp_path / "a.flac").tags == {"title": "Été", "license": "CC0"}
    with pytest.raises(AudioError, match="no tag 'mood'; use some of album, artist"):
        write_audio(tmp_path / "b.flac", audio, 44100, tags={"mood": "calm"})
    assert os.listdir(tmp_path) == ["a.flac"]


@pytest.mark.parametrize(
    ("name", "rate", "complaint"),
    [
        ("a.m4a", 44100, r"a\.m4a: cannot write '\.m4a'; use one of \.wav, \.flac"),
        ("a", 44100, r"a: cannot write ''; use one of"),
        ("a.opus", 44100, r"a\.opus: Opus has no 44100 Hz; use \.flac, or resample to 48000"),
        ("a.mp3", 96000, r"a\.mp3: MP3 has no 96000 Hz; use \.flac, or resample to 44100"),
    ],
)
def test_what_a_format_lacks_is_refused_before_anything_is_written(
    tmp_path: Path, audio: torch.Tensor, name: str, rate: int, complaint: str
) -> None:
    with pytest.raises(AudioError, match=complaint):
        write_audio(tmp_path / name, audio, rate)
    assert os.listdir(tmp_path) == []


def test_peaks_that_would_clip_are_refused(tmp_path: Path, audio: torch.Tensor) -> None:
    with pytest.raises(AudioError, match=r"peak 1\.350 would clip; lower the gain or write \.wav"):
        write_audio(tmp_path / "a.flac", audio * 1.5, 44100)
    assert os.listdir(tmp_path) == []


def test_samples_that_are_not_numbers_are_refused(tmp_path: Path, audio: torch.Tensor) -> None:
    audio[0, 5] = torch.inf
    with pytest.raises(AudioError, match="not written: the audio has samples that are not finite"):
        write_audio(tmp_path / "a.wav", audio, 44100)


def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, audio: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    write_audio(path, audio, 44100)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AudioError, match=r"a\.wav: not written: No space left .* Free some space"):
        write_audio(path, audio * 0, 44100)
    assert os.listdir(tmp_path) == ["a.wav"]
    assert torch.equal(read_audio(path)[0], audio)


def test_missing_folders_are_made(tmp_path: Path, audio: torch.Tensor) -> None:
    write_audio(tmp_path / "new" / "er" / "a.wav", audio, 44100)
    assert (tmp_path / "new" / "er" / "a.wav").is_file()


def test_a_wav_in_memory_has_16_bits_and_ends_at_full_scale(audio: torch.Tensor) -> None:
    samples, rate = soundfile.read(io.BytesIO(wav_bytes(audio * 2, 16000)), dtype="float32")
    assert rate == 16000
    expected = (audio * 2).clamp(-1, 1)
    torch.testing.assert_close(torch.from_numpy(samples.T), expected, atol=2**-15, rtol=0)
