from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sa3lora.audio import AUDIO_EXTENSIONS, probe_audio, read_audio
from sa3lora.errors import AudioError

WriteMp3 = Callable[..., Path]
RATE = 44100
SECONDS = 1.5
# name, how soundfile writes it, largest error of a sine of amplitude 0.3 after coding
FORMATS: list[tuple[str, dict[str, str], float]] = [
    ("a.wav", {"subtype": "PCM_16"}, 2**-15),
    ("a.wav", {"subtype": "PCM_24"}, 2**-23),
    ("a.wav", {"subtype": "FLOAT"}, 0.0),
    ("a.flac", {}, 2**-15),
    ("a.ogg", {}, 0.05),
    ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 0.05),
    ("a.mp3", {}, 0.05),
    ("a.aif", {"format": "AIFF"}, 2**-15),
    ("a.aiff", {}, 2**-15),
]
# A cut MP3 shows only when it is decoded, as the docstring of `probe_audio` says.
CUT = [
    (name, options, read)
    for name, options, _ in FORMATS
    for read in (probe_audio, read_audio)
    if not (name == "a.mp3" and read is probe_audio)
]


def sine(rate: int, *, channels: int = 2) -> np.ndarray[Any, Any]:
    t = np.arange(int(rate * SECONDS)) / rate
    gains = np.linspace(0.3, 0.1, channels)
    return (np.sin(2 * np.pi * 220 * t)[:, None] * gains).astype(np.float32)


def write(path: Path, options: dict[str, str], *, channels: int = 2) -> np.ndarray[Any, Any]:
    rate = 48000 if path.suffix == ".opus" else RATE
    samples = sine(rate, channels=channels)
    soundfile.write(path, samples, rate, **options)
    return samples


@pytest.mark.parametrize(("name", "options", "tolerance"), FORMATS)
def test_every_format_comes_back_as_it_was_written(
    tmp_path: Path, name: str, options: dict[str, str], tolerance: float
) -> None:
    samples = write(tmp_path / name, options)
    audio, rate = read_audio(tmp_path / name)
    assert audio.dtype == torch.float32
    assert audio.is_contiguous()
    assert audio.shape == samples.T.shape
    assert rate == (48000 if name == "a.opus" else RATE)
    inner = slice(rate // 10, -rate // 10)  # codecs smear the sudden start
    torch.testing.assert_close(
        audio[:, inner], torch.from_numpy(samples.T)[:, inner], atol=tolerance, rtol=0
    )


@pytest.mark.parametrize(("name", "options", "tolerance"), FORMATS)
def test_probing_says_what_reading_gives(
    tmp_path: Path, name: str, options: dict[str, str], tolerance: float
) -> None:
    write(tmp_path / name, options)
    info = probe_audio(tmp_path / name)
    audio, rate = read_audio(tmp_path / name)
    assert (info.num_channels, info.num_samples) == tuple(audio.shape)
    assert info.sample_rate == rate
    assert info.duration_s == audio.shape[1] / rate
    assert info.format.startswith({"a.mp3": "MP3", "a.opus": "OGG OPUS"}.get(name, ""))


def test_every_extension_but_m4a_is_tried_above() -> None:
    assert {Path(name).suffix for name, _, _ in FORMATS} == AUDIO_EXTENSIONS - {".m4a"}


@pytest.mark.parametrize(("name", "options", "tolerance"), FORMATS)
@pytest.mark.parametrize("start_s", [0.0, 0.25, 1.3])
def test_a_part_is_what_the_whole_holds_there(
    tmp_path: Path, name: str, options: dict[str, str], tolerance: float, start_s: float
) -> None:
    write(tmp_path / name, options)
    whole, rate = read_audio(tmp_path / name)
    part, _ = read_audio(tmp_path / name, start_s=start_s, duration_s=0.1)
    start = round(start_s * rate)
    assert torch.equal(part, whole[:, start : start + round(0.1 * rate)])


def test_a_part_past_the_end_is_as_long_as_there_is_audio(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", {})
    part, _ = read_audio(tmp_path / "a.wav", start_s=1.0, duration_s=10.0)
    assert part.shape == (2, round((SECONDS - 1.0) * RATE))


@pytest.mark.parametrize("start_s", [-0.1, SECONDS, 100.0])
def test_a_part_that_starts_outside_is_refused(tmp_path: Path, start_s: float) -> None:
    write(tmp_path / "a.wav", {})
    with pytest.raises(AudioError, match=rf"a\.wav: has 1\.50 s, so no part starts at {start_s:g}"):
        read_audio(tmp_path / "a.wav", start_s=start_s)


def test_mono_at_8_khz_becomes_what_a_model_wants(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "phone.wav", sine(8000, channels=1), 8000)
    assert probe_audio(tmp_path / "phone.wav").num_channels == 1
    audio, rate = read_audio(tmp_path / "phone.wav", sample_rate=16000, num_channels=2)
    assert rate == 16000
    assert audio.shape == (2, int(16000 * SECONDS))
    assert torch.equal(audio[0], audio[1])
    expected = torch.from_numpy(sine(16000, channels=1)[:, 0])
    torch.testing.assert_close(audio[0, 800:-800], expected[800:-800], atol=1e-3, rtol=0)


def test_names_with_blanks_and_accents_are_read(tmp_path: Path) -> None:
    path = tmp_path / "Größe - prise n° 7 (été).flac"
    write(path, {})
    assert read_audio(path)[0].shape == (2, int(RATE * SECONDS))


def test_tags_are_told(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "a.flac", "w", RATE, 2) as file:
        file.title, file.artist = "Été", "Nobody"
        file.write(sine(RATE))
    assert probe_audio(tmp_path / "a.flac").tags == {"title": "Été", "artist": "Nobody"}


@pytest.mark.parametrize(("name", "options", "read"), CUT)
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_cut_file_is_refused(
    tmp_path: Path, name: str, options: dict[str, str], share: float, read: Any
) -> None:
    write(tmp_path / name, options)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(AudioError, match=rf"{name}: truncated"):
        read(tmp_path / name)


@pytest.mark.parametrize("read", [probe_audio, read_audio])
@pytest.mark.parametrize("name", ["take7.wav", "take7.mp3", "take7.flac", "take7.ogg"])
def test_a_file_that_is_no_audio_says_so(tmp_path: Path, name: str, read: Any) -> None:
    path = tmp_path / name
    with pytest.raises(AudioError, match=r"take7\.\w+: no such file. Check the path\.$"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(AudioError, match=r"take7\.\w+: 0 bytes\. Repair"):
        read(path)
    path.write_text("This is a letter, not a song.\n" * 40)
    with pytest.raises(AudioError, match=r"take7\.\w+: no audio stream that can be decoded\."):
        read(path)


def test_a_file_without_samples_says_so(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((0, 2)), RATE)
    with pytest.raises(AudioError, match=r"a\.wav: no audio stream: it holds 0 samples"):
        read_audio(tmp_path / "a.wav")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "album.wav").mkdir()
    with pytest.raises(AudioError, match=r"album\.wav: is a folder"):
        probe_audio(tmp_path / "album.wav")


def test_samples_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    samples = sine(RATE)
    samples[100, 1] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="samples that are not finite numbers"):
        read_audio(tmp_path / "a.wav")


def test_the_name_of_the_suffix_does_not_matter_for_what_is_inside(tmp_path: Path) -> None:
    samples = sine(RATE)
    soundfile.write(tmp_path / "a.wav", samples, RATE, format="FLAC")
    assert probe_audio(tmp_path / "a.wav").format == "FLAC PCM_16"
    assert read_audio(tmp_path / "a.wav")[0].shape == (2, len(samples))


@pytest.fixture
def short_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the decoder deliver fewer samples than the file says, as some real Vorbis files do."""
    read = soundfile.SoundFile.read

    def shorten_by(samples: int) -> None:
        def shorter(self: soundfile.SoundFile, *args: Any, **kwargs: Any) -> Any:
            return read(self, *args, **kwargs)[:-samples]

        monkeypatch.setattr(soundfile.SoundFile, "read", shorter)

    return shorten_by


def test_a_vorbis_file_a_little_shorter_than_it_says_ends_in_silence_and_is_named(
    tmp_path: Path,
    short_reads: Callable[[int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "north.ogg"
    soundfile.write(path, 0.1 * np.ones((16000, 2)), 16000)
    short_reads(1000)
    audio, _ = read_audio(path)
    assert audio.shape == (2, 16000)
    assert not audio[:, -1000:].any()
    assert "north.ogg: 1000 of 16000 samples are missing at the end" in caplog.text


def test_a_vorbis_file_much_shorter_than_it_says_is_refused(
    tmp_path: Path, short_reads: Callable[[int], None]
) -> None:
    path = tmp_path / "cut.ogg"
    soundfile.write(path, 0.1 * np.ones((32000, 2)), 16000)
    short_reads(9000)
    with pytest.raises(AudioError, match="truncated: 9000 of 32000 samples are missing"):
        read_audio(path)


def test_an_mp3_a_little_shorter_than_was_guessed_is_read_and_a_cut_one_is_not(
    tmp_path: Path, write_mp3: WriteMp3, short_reads: Callable[[int], None]
) -> None:
    guessed = write_mp3(tmp_path / "old.mp3", indexed=False, constant=True)
    says = write_mp3(tmp_path / "cut.mp3", indexed=True, constant=True)
    short_reads(1500)
    audio, _ = read_audio(guessed)
    assert audio[:, :-1500].any()
    assert not audio[:, -1500:].any()
    with pytest.raises(AudioError, match=r"cut\.mp3: truncated: 1500 of"):
        read_audio(says)


def test_an_mp3_whose_length_is_guessed_wrongly_is_not_read_in_part(
    tmp_path: Path, write_mp3: WriteMp3
) -> None:
    path = write_mp3(tmp_path / "old.mp3", indexed=False, constant=False)
    for look in (probe_audio, read_audio):
        with pytest.raises(AudioError, match=r"without an index: .* ffmpeg -i IN\.mp3"):
            look(path)
