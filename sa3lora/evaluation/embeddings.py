"""Embeddings of audio and text behind one protocol, from windows that we cut ourselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sa3lora.audio import resample, to_channels
from sa3lora.errors import EvaluationError, ModelError
from sa3lora.models.registry import TINY_FOLDER
from sa3lora.runs import sha256_file

# Windows embedded in one call: bounds the memory of the embedding model.
_WINDOWS_PER_BATCH = 16


class Embedder(Protocol):
    """A model with one space for audio and text."""

    @property
    def name(self) -> str:
        """Name that tells two models apart in a report."""

    @property
    def sample_rate(self) -> int:
        """Rate of the windows, in Hz."""

    @property
    def window_s(self) -> float:
        """Length of a full window."""

    def embed_audio(self, windows: list[Tensor]) -> Tensor:
        """Embed mono windows (N,) at `sample_rate`, each at most `window_s` long: (n, D)."""

    def embed_text(self, prompts: list[str]) -> Tensor:
        """Embed prompts: (n, D)."""


@dataclass(frozen=True)
class AudioPiece:
    """Audio (K, N) of one track, whole or in part; pieces of one track share its name."""

    track: str
    audio: Tensor
    sample_rate: int


@dataclass(frozen=True)
class EmbeddedSet:
    """Window embeddings of a set of tracks.

    Attributes:
        vectors: (n, D), float64.
        tracks: Track of each window, (n,), numbered from 0 in the order of `names`.
        names: Names of the tracks.
        num_short: Pieces shorter than one window, which the model fills up in its own way.
        num_left_out: Windows that `max_windows` left out.
    """

    vectors: Tensor
    tracks: Tensor
    names: tuple[str, ...]
    num_short: int
    num_left_out: int

    @property
    def num_tracks(self) -> int:
        """Count the tracks."""
        return len(self.names)

    @property
    def num_windows(self) -> int:
        """Count the windows."""
        return len(self.vectors)


def cut_windows(audio: Tensor, *, num_samples: int, hop: int) -> list[Tensor]:
    """Cut a piece into windows of equal length.

    Windows start at 0, hop, 2 hop and so on while they fit. If at least half a window is left
    over behind the last one, one more window is taken that ends with the piece (it overlaps its
    neighbour), so that no window is ever padded; a shorter rest is left out. A piece shorter than
    one window is one short window.

    Args:
        audio: Mono, (N,).
        num_samples: Length of a window.
        hop: Distance between the starts of neighbours.
    """
    if audio.ndim != 1 or len(audio) == 0:
        raise ValueError(f"audio must be mono (N,) with N > 0, got {tuple(audio.shape)}")
    if len(audio) <= num_samples:
        return [audio]
    starts = list(range(0, len(audio) - num_samples + 1, hop))
    rest = len(audio) - (starts[-1] + num_samples)
    if 2 * rest >= num_samples:
        starts.append(len(audio) - num_samples)
    return [audio[start : start + num_samples] for start in starts]


def check_duration(embedder: Embedder, duration_s: float) -> None:
    """Find out before the long work whether clips of a length can be embedded.

    Raises:
        EvaluationError: If they are too short for the model.
    """
    num_samples = round(min(duration_s, embedder.window_s) * embedder.sample_rate)
    try:
        embedder.embed_audio([torch.zeros(num_samples)])
    except ModelError as error:
        raise EvaluationError(
            f"clips of {duration_s:g} s cannot be embedded: {error} Ask for longer ones."
        ) from error


def embed_pieces(
    pieces: Iterable[AudioPiece],
    embedder: Embedder,
    *,
    hop_s: float | None = None,
    max_windows: int | None = None,
) -> EmbeddedSet:
    """Embed every window of every piece.

    Pieces are mixed to mono, resampled to the model's rate, cut (`cut_windows`) and embedded one
    after another, so that only one is in memory.

    Args:
        pieces: The audio.
        embedder: The embedding model.
        hop_s: Distance between windows. Default: one window, no overlap.
        max_windows: Take at most so many windows of a piece, evenly spread. Default: all.

    Raises:
        EvaluationError: If there is no audio, or the model gives a value that is not finite.
    """
    num_samples = round(embedder.window_s * embedder.sample_rate)
    hop = num_samples if hop_s is None else max(1, round(hop_s * embedder.sample_rate))
    names: dict[str, int] = {}
    vectors, owners = [], []
    num_short = num_left_out = 0
    for piece in pieces:
        mono = resample(to_channels(piece.audio, 1), piece.sample_rate, embedder.sample_rate)[0]
        num_short += len(mono) < num_samples
        windows = cut_windows(mono, num_samples=num_samples, hop=hop)
        kept = _spread(windows, max_windows)
        num_left_out += len(windows) - len(kept)
        for start in range(0, len(kept), _WINDOWS_PER_BATCH):
            batch = kept[start : start + _WINDOWS_PER_BATCH]
            try:
                vectors.append(embedder.embed_audio(batch).cpu())
            except ModelError as error:
                raise EvaluationError(
                    f"{piece.track} cannot be embedded: {error} Take it out, or a longer one."
                ) from error
        owners += [names.setdefault(piece.track, len(names))] * len(kept)
    if not vectors:
        raise EvaluationError("there is no audio to embed")
    stacked = torch.cat(vectors).double()
    if not torch.isfinite(stacked).all():
        raise EvaluationError(f"{embedder.name} gave an embedding that is not finite")
    return EmbeddedSet(stacked, torch.tensor(owners), tuple(names), num_short, num_left_out)


def _spread(windows: list[Tensor], most: int | None) -> list[Tensor]:
    """Take at most so many windows, the first and the last among them."""
    if most is None or len(windows) <= most:
        return windows
    chosen = torch.linspace(0, len(windows) - 1, most).round().long().tolist()
    return [windows[number] for number in chosen]


def embed_prompts(prompts: list[str], embedder: Embedder) -> Tensor:
    """Embed each different prompt once, (n, D) float64 in the order given."""
    different = list(dict.fromkeys(prompts))
    parts = [
        embedder.embed_text(different[start : start + _WINDOWS_PER_BATCH])
        for start in range(0, len(different), _WINDOWS_PER_BATCH)
    ]
    rows = torch.cat(parts).double().cpu()
    numbers = {prompt: number for number, prompt in enumerate(different)}
    return rows[torch.tensor([numbers[prompt] for prompt in prompts])]


def load_embedder(name_or_path: str, *, device: str = "cpu") -> Embedder:
    """Load an embedding model.

    Args:
        name_or_path: `tiny` (the embedded CLAP), `laion` (laion/larger_clap_music from the Hub), a
            folder that holds a CLAP of either kind, or an official LAION `.pt` file.
        device: Where it runs.

    Raises:
        EvaluationError: If the name is none of these.
    """
    from sa3lora.models.laion_clap import LaionClap, is_laion_folder

    path = Path(name_or_path)
    if name_or_path == "tiny":
        return _load_tiny(TINY_FOLDER / "clap", device)
    if name_or_path == "laion":
        return LaionClap.from_pretrained("laion/larger_clap_music", device=device)
    if path.suffix == ".pt" and path.is_file():
        return LaionClap.from_checkpoint(path, device=device)
    if path.is_dir():
        if is_laion_folder(path):
            return LaionClap.from_pretrained(str(path), device=device)
        return _load_tiny(path, device)
    raise EvaluationError(
        f"{name_or_path}: no such embedding model. Give tiny, laion, a folder with a CLAP model, "
        "or an official LAION checkpoint (.pt)."
    )


def _load_tiny(folder: Path, device: str) -> Embedder:
    """Load a TinyClap; its name gets a hash, since every release has weights of its own."""
    from sa3lora.models.clap import TinyClap

    clap = TinyClap.from_pretrained(folder)
    weights = sha256_file(folder / "model.safetensors")
    clap.config = replace(clap.config, name=f"{clap.config.name}@{weights[:8]}")
    return clap.to(device)
