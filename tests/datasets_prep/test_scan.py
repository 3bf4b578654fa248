from __future__ import annotations

import shutil

import numpy as np
import pytest
import soundfile

from datasets_prep.scan import SourceFile, Unusable, check_source, find_sources
from datasets_prep.segment import SegmentRule
from sa3lora.errors import DatasetError

RULE = SegmentRule(sample_rate=8000, ratio=32, segment_s=1.0, min_s=0.25, max_s=1.0)


def check(path):
    return check_source(SourceFile(path, path.name), rule=RULE)


def test_audio_is_found_in_every_folder_and_in_order(tmp_path):
    for name in ("b.WAV", "sub folder/é.flac", "a.mp3", "notes.txt", "cover.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found, foreign = find_sources(tmp_path)
    assert [file.relative for file in found] == ["a.mp3", "b.WAV", "sub folder/é.flac"]
    assert foreign == []


def test_hidden_files_are_left_out_by_rule(tmp_path):
    (tmp_path / ".cache").mkdir()
    for name in ("a.wav", "._a.wav", ".b.wav", ".cache/c.wav"):
        (tmp_path / name).touch()
    assert [file.relative for file in find_sources(tmp_path)[0]] == ["a.wav"]


def test_the_output_folder_is_not_scanned(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.wav").touch()
    (tmp_path / "a.wav").touch()
    found, _ = find_sources(tmp_path, exclude=tmp_path / "out")
    assert [file.relative for file in found] == ["a.wav"]


def test_linked_folders_are_followed_once(tmp_path):
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "a.wav").touch()
    (tmp_path / "music" / "loop").symlink_to(tmp_path / "music")
    (tmp_path / "music" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.wav").touch()
    found, _ = find_sources(tmp_path / "music")
    assert [file.relative for file in found] == ["a.wav", "more/b.wav"]


def test_audio_of_other_formats_is_named(tmp_path):
    (tmp_path / "x.WMA").touch()
    assert find_sources(tmp_path)[1] == [Unusable("x.WMA", ".wma is not read: convert it to .flac")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no folder"),
        (lambda path: path.touch(), "is a file"),
        (lambda path: path.mkdir(), "there is no audio in"),
    ],
)
def test_a_folder_without_audio_is_refused(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(DatasetError, match=message):
        find_sources(tmp_path / "x")


def test_a_file_is_measured_and_cut(tmp_path, write_noise):
    facts = check(write_noise(tmp_path / "a.wav", seconds=2.5, rate=16000))
    assert facts.duration_s == 2.5
    assert [segment.num_samples for segment in facts.segments] == [8000, 8000, 4000]
    assert facts.silent == [False, False, False]


def test_the_same_recording_in_another_container_has_the_same_audio(tmp_path, write_noise):
    wav = write_noise(tmp_path / "a.wav", channels=1)
    samples, rate = soundfile.read(wav, dtype="int16")
    soundfile.write(tmp_path / "b.flac", samples, rate)
    first, second = check(wav), check(tmp_path / "b.flac")
    assert first.audio_sha256 == second.audio_sha256
    assert first.source_sha256 != second.source_sha256


def test_a_silent_part_is_marked(tmp_path):
    rng = np.random.default_rng(0)
    loud, quiet = 0.1 * rng.standard_normal(8000), 0.0005 * np.ones(8000)
    soundfile.write(tmp_path / "a.wav", np.concatenate([loud, quiet]), 8000, subtype="FLOAT")
    assert check(tmp_path / "a.wav").silent == [False, True]


def test_unusable_files_say_why(tmp_path, write_noise):
    (tmp_path / "zero.wav").touch()
    (tmp_path / "text.mp3").write_text("no sound " * 99)
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 8000)
    write_noise(tmp_path / "blip.wav", seconds=0.002)
    whole = write_noise(tmp_path / "whole.aiff")
    shutil.copy(whole, tmp_path / "cut.aiff")
    (tmp_path / "cut.aiff").write_bytes(whole.read_bytes()[:3000])
    reasons = {
        name: check(tmp_path / name).reason
        for name in ("zero.wav", "text.mp3", "silent.wav", "blip.wav", "cut.aiff", "gone.wav")
    }
    assert reasons["zero.wav"] == "0 bytes"
    assert reasons["text.mp3"].startswith("no audio stream")
    assert reasons["silent.wav"] == "silent: its peak is below -60 dBFS"
    assert reasons["blip.wav"] == "0.002 s is shorter than one latent (0.004 s)"
    assert reasons["cut.aiff"].startswith("truncated")
    assert "no such file" in reasons["gone.wav"].lower()
