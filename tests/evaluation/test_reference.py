from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sa3lora.errors import AudioError, EvaluationError
from sa3lora.evaluation.reference import (
    default_prompts,
    folder_reference,
    is_dataset,
    read_sidecar,
)
from sa3lora.latents.format import LatentsDataset

Folder = Callable[..., Path]


def test_every_file_below_a_folder_is_a_track_with_its_caption(audio_folder: Folder) -> None:
    folder = audio_folder("mine", tracks=2)
    (folder / "deep").mkdir()
    shutil.copy(folder / "0.wav", folder / "deep" / "9.WAV")
    reference = folder_reference(folder)
    assert [piece.track for piece in reference.pieces()] == ["0.wav", "1.wav", "deep/9.WAV"]
    assert reference.captions == ("a noise", "a noise a")
    assert reference.num_pieces == 3


def test_the_hash_follows_content_and_not_names_or_place(audio_folder: Folder) -> None:
    first, second = audio_folder("one"), audio_folder("two")
    (second / "0.wav").rename(second / "z.wav")
    assert folder_reference(first).hash == folder_reference(second).hash
    (second / "1.wav").unlink()
    assert folder_reference(first).hash != folder_reference(second).hash


def test_a_broken_file_is_named_when_it_is_read(audio_folder: Folder) -> None:
    folder = audio_folder("mine", tracks=2)
    (folder / "1.wav").write_bytes(b"")
    with pytest.raises(AudioError, match=r"1\.wav: 0 bytes"):
        list(folder_reference(folder).pieces())


def test_a_folder_without_audio_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no music here", encoding="utf-8")
    with pytest.raises(EvaluationError, match="holds no audio"):
        folder_reference(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no such folder"):
        folder_reference(tmp_path / "gone")


def test_a_json_sidecar_gives_its_caption(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"caption": "slow\\n waltz", "bpm": 90}', encoding="utf-8")
    assert read_sidecar(tmp_path / "x.wav") == "slow waltz"
    assert read_sidecar(tmp_path / "y.wav") == ""


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_broken_sidecar_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"x\.wav: its caption cannot be read"):
        read_sidecar(tmp_path / "x.wav")


def test_a_folder_is_a_dataset_by_its_dataset_json(tmp_path: Path) -> None:
    assert not is_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{}", encoding="utf-8")
    assert is_dataset(tmp_path)


def test_without_captions_the_prompts_are_those_of_held_out_clips(
    audio_folder: Folder, make_latents: Folder, tmp_path: Path
) -> None:
    folder = audio_folder("other", tracks=1)
    dataset = make_latents(tmp_path / "latents", held_out=2)
    assert default_prompts(folder_reference(folder), dataset) == (("a noise",), ())
    (folder / "0.txt").unlink()
    captions, notes = default_prompts(folder_reference(folder), dataset)
    held_out = LatentsDataset.open(dataset, split="validation")
    assert captions == tuple(row.caption for row in held_out.rows)
    assert notes == ("other has no captions: the prompts are those of latents (validation).",)


def test_without_any_captions_there_are_no_prompts(audio_folder: Folder) -> None:
    folder = audio_folder("other", tracks=1)
    (folder / "0.txt").unlink()
    assert default_prompts(folder_reference(folder), None) == ((), ())
