from __future__ import annotations

import shutil
from collections import namedtuple

import datasets
import pytest
import torch

from datasets_prep import encode
from datasets_prep.build import PrepOptions, prep
from sa3lora.errors import DatasetError, UsageError
from sa3lora.latents.format import LatentsDataset
from sa3lora.latents.shards import list_shards
from sa3lora.models.blocks import encode_audio


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Lengths of what the autoencoder was given."""
    calls: list[int] = []

    def counted(autoencoder, audio, **options):
        calls.append(audio.shape[-1])
        return encode_audio(autoencoder, audio, **options)

    monkeypatch.setattr(encode, "encode_audio", counted)
    return calls


def snapshot(folder):
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir() if p.is_file()}


def test_a_folder_becomes_a_dataset(tracks, tmp_path, source):
    report = prep(tracks, tmp_path / "set", source=source)
    data = LatentsDataset.open(tmp_path / "set")
    assert (report.encoded, report.kept, report.num_files) == (6, 0, 5)
    assert [row.source for row in data.rows] == [
        "t0.wav",
        "t0.wav",
        *(f"t{n}.wav" for n in range(1, 5)),
    ]
    assert data.captions[2:] == [f"noise number {n}" for n in range(1, 5)]
    assert sum(row.duration_s for row in data.rows) == pytest.approx(1.5 + 4 * 0.4)
    assert data.num_frames[2] == 100
    assert data.meta.ae_hash == source.ae_hash
    assert data.silence.shape == (12, 256)
    assert datasets.load_from_disk(str(tmp_path / "set")).num_rows == 6
    assert {row.split for row in data.rows} == {"train", "validation"}


def test_latents_are_those_of_the_model(tracks, tmp_path, source):
    from sa3lora.audio import read_audio

    prep(tracks, tmp_path / "set", source=source)
    clip = LatentsDataset.open(tmp_path / "set")[3]
    audio, _ = read_audio(tracks / clip.source)
    expected = encode_audio(source.load_autoencoder(), audio[None])[0]
    torch.testing.assert_close(clip.latent, expected.half().float())


def test_a_second_prep_encodes_and_writes_nothing(tracks, tmp_path, source, encoded):
    prep(tracks, tmp_path / "set", source=source)
    before = snapshot(tmp_path / "set")
    encoded.clear()
    report = prep(tracks, tmp_path / "set", source=source)
    assert (report.encoded, report.kept, encoded) == (0, 6, [])
    assert snapshot(tmp_path / "set") == before


def test_an_interrupted_prep_goes_on_to_the_same_dataset(tracks, tmp_path, source, encoded):
    whole = prep(tracks, tmp_path / "whole", source=source)

    def interrupt(stage, done, total, name):
        if stage == "encode" and name == "t2.wav":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prep(tracks, tmp_path / "set", source=source, progress=interrupt)
    with pytest.raises(DatasetError, match="unfinished"):
        LatentsDataset.open(tmp_path / "set")
    encoded.clear()
    report = prep(tracks, tmp_path / "set", source=source)
    assert (report.encoded, report.kept, len(encoded)) == (2, 4, 2)
    assert report.meta == whole.meta


def test_a_lost_shard_is_encoded_again(tracks, tmp_path, source):
    whole = prep(tracks, tmp_path / "set", source=source)
    list_shards(tmp_path / "set")[0].unlink()
    report = prep(tracks, tmp_path / "set", source=source)
    assert (report.encoded, report.meta) == (6, whole.meta)


def test_a_damaged_shard_is_named_and_encoded_again(tracks, tmp_path, source, caplog):
    whole = prep(tracks, tmp_path / "set", source=source)
    shard = list_shards(tmp_path / "set")[0]
    shard.write_bytes(shard.read_bytes()[:2000])
    assert prep(tracks, tmp_path / "set", source=source).meta == whole.meta
    assert "shard-0-0.arrow is damaged" in caplog.text


def test_a_damaged_manifest_is_written_again(tracks, tmp_path, source):
    prep(tracks, tmp_path / "set", source=source)
    (tmp_path / "set" / "state.json").write_text("{")
    (tmp_path / "set" / ".prep" / "checks.json").write_text("[")
    assert prep(tracks, tmp_path / "set", source=source).encoded == 0
    assert len(LatentsDataset.open(tmp_path / "set")) == 6


def test_changed_removed_and_added_files_are_followed_and_named(
    tracks, tmp_path, source, write_noise, caplog
):
    prep(tracks, tmp_path / "set", source=source)
    write_noise(tracks / "t1.wav", seconds=0.3)
    (tracks / "t2.wav").unlink()
    write_noise(tracks / "t9.wav")
    report = prep(tracks, tmp_path / "set", source=source, options=PrepOptions("added"))
    assert (report.encoded, report.kept) == (2, 4)
    assert "changed since they were encoded, encoded again: t1.wav" in caplog.text
    assert "their clips leave the dataset: t2.wav" in caplog.text
    data = LatentsDataset.open(tmp_path / "set")
    assert {row.source for row in data.rows} == {f"t{n}.wav" for n in (0, 1, 3, 4, 9)}
    fresh = prep(tracks, tmp_path / "fresh", source=source, options=PrepOptions("added"))
    assert fresh.meta == report.meta


def test_a_new_caption_or_name_is_taken_over_without_encoding(
    tracks, tmp_path, source, encoded, caplog
):
    prep(tracks, tmp_path / "set", source=source)
    encoded.clear()
    (tracks / "t3.txt").write_text("new words")
    (tracks / "t4.wav").rename(tracks / "other.wav")
    (tracks / "t4.txt").rename(tracks / "other.txt")
    report = prep(tracks, tmp_path / "set", source=source)
    assert (report.encoded, encoded) == (0, [])
    data = LatentsDataset.open(tmp_path / "set")
    assert "new words" in data.captions
    assert "other.wav" in {row.source for row in data.rows}
    assert "new caption without encoding: t3.wav" in caplog.text


def test_names_do_not_change_the_latents(tracks, tmp_path, source):
    prep(tracks, tmp_path / "set", source=source)
    shutil.copytree(tracks, tmp_path / "other" / "deep é")
    prep(tmp_path / "other", tmp_path / "second", source=source)
    first, second = LatentsDataset.open(tmp_path / "set"), LatentsDataset.open(tmp_path / "second")
    for n in range(len(first)):
        assert second.rows[n].source == f"deep é/{first.rows[n].source}"
        assert second.rows[n].split == first.rows[n].split
        assert torch.equal(first[n].latent, second[n].latent)


def test_broken_files_stop_everything_before_anything_is_written(tracks, tmp_path, source, encoded):
    (tracks / "zero.wav").touch()
    (tracks / "bad.txt").touch()
    with pytest.raises(DatasetError, match=r"1 of 6 files cannot be used:\n  zero.wav: 0 bytes"):
        prep(tracks, tmp_path / "set", source=source)
    assert encoded == []
    assert not (tmp_path / "set").exists()


def test_skipped_files_are_named_in_the_dataset(tracks, tmp_path, source):
    (tracks / "zero.wav").touch()
    report = prep(tracks, tmp_path / "set", source=source, options=PrepOptions(skip_broken=True))
    assert report.meta.skipped == [{"source": "zero.wav", "reason": "0 bytes"}]
    (tracks / "zero.wav").unlink()
    assert prep(tracks, tmp_path / "set", source=source).meta.skipped == []
    assert LatentsDataset.open(tmp_path / "set").meta.skipped == []


def test_other_segments_are_refused(tracks, tmp_path, source):
    prep(tracks, tmp_path / "set", source=source)
    before = snapshot(tmp_path / "set")
    with pytest.raises(DatasetError, match=r"prepared with segment_s 1.024, this is 0.5") as info:
        prep(tracks, tmp_path / "set", source=source, options=PrepOptions(segment_s=0.5))
    assert "Give another -o" in str(info.value)
    assert snapshot(tmp_path / "set") == before


def test_another_model_is_refused(tracks, tmp_path, source, monkeypatch):
    prep(tracks, tmp_path / "set", source=source)
    monkeypatch.setitem(source.__dict__, "ae_hash", "f" * 64)
    monkeypatch.setattr(source, "name", "other")
    with pytest.raises(DatasetError, match=r"prepared with the model small, this is other"):
        prep(tracks, tmp_path / "set", source=source)


def test_a_folder_of_other_things_is_not_touched(tracks, tmp_path, source):
    with pytest.raises(DatasetError, match="holds other things and is not a latents dataset"):
        prep(tracks, tracks, source=source)
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"file is a file. Give -o a folder"):
        prep(tracks, tmp_path / "file", source=source)


def test_too_little_space_is_told_before_encoding(tracks, tmp_path, source, monkeypatch, encoded):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1000))
    with pytest.raises(DatasetError, match=r"needs 4 MB, .* has 0 MB free"):
        prep(tracks, tmp_path / "set", source=source)
    assert encoded == []
    assert not (tmp_path / "set").exists()


def test_a_disk_that_fills_up_leaves_nothing_half_written(tracks, tmp_path, source, monkeypatch):
    def full(root, **_):
        raise DatasetError(f"cannot write {root}: No space left on device.")

    monkeypatch.setattr(encode, "write_shard", full)
    with pytest.raises(DatasetError, match="No space left on device"):
        prep(tracks, tmp_path / "set", source=source)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PrepOptions(segment_s=9.0), r"at most the model's 1.024 s, got 9"),
        (PrepOptions(validation=0.6, test=0.5), "together below 1"),
        (PrepOptions(caption_template="{"), "for braces"),
    ],
)
def test_options_that_cannot_work_are_wrong_usage(tracks, tmp_path, source, options, message):
    with pytest.raises(UsageError, match=message):
        prep(tracks, tmp_path / "set", source=source, options=options)
    assert not (tmp_path / "set").exists()


def test_one_file_is_enough(tmp_path, source, write_noise):
    write_noise(tmp_path / "in" / "a.flac", rate=22050, channels=1)
    report = prep(tmp_path / "in", tmp_path / "set", source=source, options=PrepOptions("{words}"))
    assert report.meta.counts == {"clips": 1, "sources": 1, "train": 1, "validation": 0, "test": 0}
    assert report.meta.captions == {"template": 1}
