"""What generated audio is compared with: a folder of audio, or the held-out clips of a dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sa3lora.audio import AUDIO_EXTENSIONS, read_audio
from sa3lora.errors import EvaluationError
from sa3lora.evaluation.embeddings import AudioPiece
from sa3lora.latents.format import LatentsDataset
from sa3lora.runs import sha256_file

# Keys under which a .json sidecar may hold the caption, in this order.
_CAPTION_KEYS = ("prompt", "caption", "text")


@dataclass(frozen=True)
class Reference:
    """Reference audio, read when asked for.

    Attributes:
        name: What a report calls it.
        hash: SHA-256 of its content, independent of names, order and place.
        pieces: Gives the audio, one piece after another.
        num_pieces: How many there are.
        captions: Its captions, none where it has none.
        notes: What a reader of the scores must know about it.
    """

    name: str
    hash: str
    pieces: Callable[[], Iterator[AudioPiece]]
    num_pieces: int
    captions: tuple[str, ...]
    notes: tuple[str, ...] = ()


def folder_reference(folder: Path) -> Reference:
    """Take every audio file below a folder, each a track.

    Raises:
        EvaluationError: If the folder is missing or has no audio.
        AudioError: While reading, if a file cannot be decoded.
    """
    if not folder.is_dir():
        raise EvaluationError(
            f"{folder}: no such folder. --reference takes a folder of audio or a latents dataset."
        )
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_EXTENSIONS
        and not path.name.startswith(".")
        and path.is_file()
    )
    if not paths:
        kinds = ", ".join(sorted(AUDIO_EXTENSIONS))
        raise EvaluationError(
            f"{folder} holds no audio ({kinds}) and is no latents dataset. Name another folder."
        )

    def pieces() -> Iterator[AudioPiece]:
        for path in paths:
            audio, rate = read_audio(path)
            yield AudioPiece(str(path.relative_to(folder)), audio, rate)

    captions = [caption for path in paths if (caption := read_sidecar(path))]
    content = hashlib.sha256("\n".join(sorted(map(sha256_file, paths))).encode())
    return Reference(
        folder.name or str(folder), content.hexdigest(), pieces, len(paths), tuple(captions)
    )


def read_sidecar(path: Path) -> str:
    """Read the caption beside an audio file: NAME.txt, else NAME.json; empty if there is none.

    Raises:
        EvaluationError: If the sidecar cannot be read.
    """
    text, table = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        if text.is_file():
            return " ".join(text.read_text(encoding="utf-8").split())
        if table.is_file():
            values = json.loads(table.read_text(encoding="utf-8"))
            found = [values[key] for key in _CAPTION_KEYS if values.get(key)]
            return " ".join(str(found[0]).split()) if found else ""
    except (OSError, ValueError, AttributeError) as error:
        raise EvaluationError(f"{path.name}: its caption cannot be read: {error}") from error
    return ""


def dataset_reference(root: Path, *, decode: Callable[[Tensor], Tensor]) -> Reference:
    """Take the held-out clips of a dataset, decoded; the clips of one source are one track.

    Args:
        root: The dataset.
        decode: Turns a latent (C, T) into audio (K, N) at the dataset's rate.
    """
    parts, note = open_held_out(root)
    rows = [row for part in parts for row in part.rows]

    def pieces() -> Iterator[AudioPiece]:
        for part in parts:
            for number in range(len(part)):
                clip = part[number]
                audio = decode(clip.latent).cpu().float()
                length = round(clip.duration_s * part.meta.sample_rate)
                yield AudioPiece(clip.source, audio[:, :length], part.meta.sample_rate)

    content = hashlib.sha256(parts[0].meta.ae_hash.encode())
    content.update("\n".join(sorted(row.clip_id for row in rows)).encode())
    notes = (
        note,
        "The reference is decoded from latents: what the autoencoder loses is not counted.",
    )
    captions = tuple(row.caption for row in rows if row.caption)
    return Reference(root.name, content.hexdigest(), pieces, len(rows), captions, notes)


def open_held_out(root: Path) -> tuple[list[LatentsDataset], str]:
    """Open the clips of a dataset that training did not see, and say which they are.

    Returns:
        Validation and test split, as far as they have clips; where neither has, the whole
        dataset. With a sentence about the choice.
    """
    opened = [LatentsDataset.open(root, split=split) for split in ("validation", "test")]
    parts = [part for part in opened if len(part)]
    if parts:
        names = " and ".join(str(part.split) for part in parts)
        return parts, f"The reference is the {names} split of {root.name}."
    return [LatentsDataset.open(root)], (
        f"{root.name} has no held-out clips: the reference is what the adapter may have been "
        "trained on, so a good score may be mere copying."
    )


def default_prompts(
    reference: Reference, dataset: Path | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Take the captions of the reference, else those of a dataset's held-out clips.

    Returns:
        The captions, maybe none, and a note where they are not the reference's own.
    """
    if reference.captions or dataset is None:
        return reference.captions, ()
    parts, _ = open_held_out(dataset)
    captions = tuple(row.caption for part in parts for row in part.rows if row.caption)
    names = " and ".join(str(part.split) for part in parts if part.split) or "train"
    note = f"{reference.name} has no captions: the prompts are those of {dataset.name} ({names})."
    return captions, (note,) if captions else ()


def is_dataset(folder: Path) -> bool:
    """Say whether a folder is a latents dataset."""
    return (folder / "dataset.json").is_file()
