"""Finding audio files and learning what must be known of each before anything is encoded."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from datasets_prep.segment import Segment, SegmentRule, segment_source, source_range
from sa3lora.audio import AUDIO_EXTENSIONS, probe_audio, read_audio
from sa3lora.errors import AudioError, DatasetError
from sa3lora.runs import sha256_file

# Sound that nothing here decodes: named instead of passed over, since the user meant it.
_OTHER_AUDIO = frozenset(
    {".aac", ".ac3", ".amr", ".ape", ".au", ".caf", ".dsf", ".m4b", ".mid", ".midi", ".mka"}
    | {".mp2", ".mp4", ".mpc", ".oga", ".ra", ".rf64", ".tta", ".w64", ".weba", ".wma", ".wv"}
)
_SILENCE_PEAK = 10 ** (-60 / 20)


@dataclass(frozen=True)
class SourceFile:
    """An audio file and its name relative to the scanned folder, with forward slashes."""

    path: Path
    relative: str


@dataclass(frozen=True)
class Unusable:
    """A file, or a part of one, that stays out of the dataset, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class SourceFacts:
    """What a usable file holds.

    `audio_sha256` is of the decoded samples: the same recording as WAV and FLAC has it in common.
    """

    source_sha256: str
    audio_sha256: str
    duration_s: float
    tags: dict[str, str]
    segments: list[Segment]
    silent: list[bool]


def find_sources(
    audio_dir: Path, *, exclude: Path | None = None
) -> tuple[list[SourceFile], list[Unusable]]:
    """List the audio files below a folder.

    Hidden files and folders (names that begin with a dot, macOS's `._*` among them) and files
    that are no audio are left out by rule. Linked folders are followed, each once.

    Args:
        audio_dir: The folder.
        exclude: A folder below it to leave out.

    Returns:
        Files by name, and files whose format is not read here.

    Raises:
        DatasetError: If the folder is missing, is a file, or holds no audio.
    """
    if not audio_dir.exists():
        raise DatasetError(f"there is no folder {audio_dir}. Check the path.")
    if not audio_dir.is_dir():
        raise DatasetError(f"{audio_dir} is a file. Give the folder that it is in.")
    found: list[SourceFile] = []
    foreign: list[Unusable] = []
    for path in _walk(audio_dir, exclude=exclude):
        relative = path.relative_to(audio_dir).as_posix()
        suffix = path.suffix.lower()
        if suffix in AUDIO_EXTENSIONS:
            found.append(SourceFile(path, relative))
        elif suffix in _OTHER_AUDIO:
            foreign.append(Unusable(relative, f"{suffix} is not read: convert it to .flac"))
    if not found and not foreign:
        known = " ".join(sorted(AUDIO_EXTENSIONS))
        raise DatasetError(f"there is no audio in {audio_dir}. Files that are read: {known}")
    found.sort(key=lambda item: item.relative)
    foreign.sort(key=lambda item: item.source)
    return found, foreign


def _walk(root: Path, *, exclude: Path | None) -> list[Path]:
    paths: list[Path] = []
    seen = {os.path.realpath(root)}
    if exclude is not None:
        seen.add(os.path.realpath(exclude))

    def refuse(error: OSError) -> None:
        raise DatasetError(f"cannot read the folder {error.filename}: {error.strerror}.")

    for folder, names, files in os.walk(root, followlinks=True, onerror=refuse):
        kept = []
        for name in sorted(names):
            real = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                kept.append(name)
        names[:] = kept
        paths.extend(Path(folder, name) for name in files if not name.startswith("."))
    return paths


def check_source(file: SourceFile, *, rule: SegmentRule) -> SourceFacts | Unusable:
    """Decode a file once, to know before encoding whether it can be used.

    Args:
        file: The file.
        rule: How it will be cut.

    Returns:
        What it holds, or why it cannot be used.
    """
    try:
        source_sha256 = sha256_file(file.path)
        tags = probe_audio(file.path).tags
        audio, sample_rate = read_audio(file.path)
    except AudioError as error:
        return Unusable(file.relative, error.reason)
    except OSError as error:
        return Unusable(file.relative, f"cannot be read: {error.strerror or error}")
    num_samples = audio.shape[1]
    segments = segment_source(rule.model_samples(num_samples, sample_rate), rule=rule)
    if not segments:
        seconds = num_samples / sample_rate
        return Unusable(
            file.relative,
            f"{seconds:.3f} s is shorter than one latent ({rule.ratio / rule.sample_rate:.3f} s)",
        )
    silent = []
    for segment in segments:
        start, stop = source_range(segment, rule=rule, sample_rate=sample_rate)
        silent.append(float(audio[:, start:stop].abs().max()) < _SILENCE_PEAK)
    if all(silent):
        return Unusable(file.relative, "silent: its peak is below -60 dBFS")
    return SourceFacts(
        source_sha256=source_sha256,
        audio_sha256=_hash_audio(audio, sample_rate),
        duration_s=num_samples / sample_rate,
        tags=tags,
        segments=segments,
        silent=silent,
    )


def _hash_audio(audio: Tensor, sample_rate: int) -> str:
    digest = hashlib.sha256(f"{sample_rate} {audio.shape[0]} ".encode())
    digest.update(audio.contiguous().numpy().data)
    return digest.hexdigest()
