"""The models that have a name: where they lie, and what they ask for before a download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Where the embedded model lies in the installed package.
TINY_FOLDER = Path(__file__).parent.parent / "assets" / "tiny"


@dataclass(frozen=True)
class ModelEntry:
    """One line of `sa3lora models list`.

    Attributes:
        name: What the user types.
        repo_id: Hub repository, or None for the embedded model.
        size_gb: Download in decimal gigabytes, weights and text encoder.
        memory_gb: About what inference needs in half precision (float32 for tiny).
        about: One line.
    """

    name: str
    repo_id: str | None
    size_gb: float
    memory_gb: float
    about: str


_HUB = "stabilityai/stable-audio-3-"
# weights as measured on the released files; the text encoder adds about 0.6 GB (bfloat16)
MODELS = {
    entry.name: entry
    for entry in (
        ModelEntry("tiny", None, 0.02, 0.5, "embedded, 16 kHz, for trying everything offline"),
        ModelEntry("small-music", _HUB + "small-music", 2.9, 3, "music, 8 steps, up to 120 s"),
        ModelEntry("small-music-base", _HUB + "small-music-base", 2.9, 3, "music, train on this"),
        ModelEntry("small-sfx", _HUB + "small-sfx", 2.9, 3, "sound effects, 8 steps"),
        ModelEntry("small-sfx-base", _HUB + "small-sfx-base", 2.9, 3, "effects, train on this"),
        ModelEntry("medium", _HUB + "medium", 9.9, 7, "music and effects, 8 steps, up to 380 s"),
        ModelEntry("medium-base", _HUB + "medium-base", 9.9, 7, "medium, train on this"),
        ModelEntry("same-s", "stabilityai/SAME-S", 0.43, 1, "autoencoder of the small models"),
        ModelEntry("same-l", "stabilityai/SAME-L", 3.4, 3, "autoencoder of the medium models"),
    )
}


def base_name(name: str) -> str:
    """Name without `-base`: what a base model and its post-trained sibling share."""
    return name.removesuffix("-base")
