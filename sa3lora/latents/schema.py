"""What a latents dataset consists of: file names, the columns of a row, and `dataset.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from datasets import Features, Sequence, Value

from sa3lora.errors import DatasetError

FORMAT_NAME = "sa3lora.latents"
FORMAT_VERSION = 1
META_NAME = "dataset.json"
STATE_NAME = "state.json"
INFO_NAME = "dataset_info.json"
SILENCE_NAME = "silence.safetensors"
PREP_FOLDER = ".prep"
TEXT_FOLDER = ".text"
SPLITS = ("train", "validation", "test")

_AGAIN = "Run the same sa3lora prep again."
# Of the keys of dataset.json.
_KINDS: dict[str, type] = {
    **dict.fromkeys(("model", "ae_hash", "fingerprint", "format"), str),
    **dict.fromkeys(("sample_rate", "ratio", "channels", "format_version"), int),
    **dict.fromkeys(("counts", "seconds", "captions", "options"), dict),
    **dict.fromkeys(("skipped", "silent"), list),
}


def row_features() -> Features:
    """Give the columns of a row, in the order of the files."""
    return Features(
        {
            "clip_id": Value("string"),
            "latent": Sequence(Value("float16")),
            "num_frames": Value("int32"),
            "caption": Value("string"),
            "caption_source": Value("string"),
            "tags": Value("string"),
            "duration_s": Value("float64"),
            "start_s": Value("float64"),
            "source": Value("string"),
            "source_sha256": Value("string"),
            "source_duration_s": Value("float64"),
            "split": Value("string"),
            "licence": Value("string"),
            "attribution": Value("string"),
        }
    )


@dataclass(frozen=True)
class ClipRow:
    """Everything a row says about a clip but the latent itself.

    `source` is relative to the folder that was prepared, with forward slashes. `tags` is one JSON
    object of texts in the file: datasets with other tags then keep the same columns.
    """

    clip_id: str
    num_frames: int
    caption: str
    caption_source: str
    tags: dict[str, str]
    duration_s: float
    start_s: float
    source: str
    source_sha256: str
    source_duration_s: float
    split: str
    licence: str | None = None
    attribution: str | None = None

    def to_columns(self) -> dict[str, Any]:
        """Give the plain values of the columns, without the latent."""
        values = asdict(self)
        values["tags"] = json.dumps(self.tags, ensure_ascii=False, sort_keys=True)
        return values

    @classmethod
    def from_columns(cls, values: dict[str, Any]) -> ClipRow:
        """Read a row back.

        Args:
            values: Plain values by column; a latent among them is ignored.

        Returns:
            The row, equal to the one that was written.
        """
        names = {item.name for item in fields(cls)}
        kept = {name: value for name, value in values.items() if name in names}
        return cls(**{**kept, "tags": json.loads(kept["tags"])})


@dataclass(frozen=True)
class DatasetMeta:
    """The content of `dataset.json`.

    `counts` has `clips`, `sources` and one entry a split; `seconds` has `total` and one entry a
    split; `captions` counts clips by caption source; `skipped` and `silent` name what was left
    out and why; `options` repeats what the segments and splits were made with.
    """

    model: str
    ae_hash: str
    sample_rate: int
    ratio: int
    channels: int
    counts: dict[str, int]
    seconds: dict[str, float]
    captions: dict[str, int]
    fingerprint: str
    skipped: list[dict[str, str]] = field(default_factory=list)
    silent: list[dict[str, str]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT_NAME
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """Give the JSON object, format first."""
        values = asdict(self)
        head = {name: values.pop(name) for name in ("format", "format_version")}
        return head | values

    @classmethod
    def from_json(cls, values: object, *, name: str) -> DatasetMeta:
        """Read and check `dataset.json`.

        Args:
            values: The parsed file.
            name: What to call the file in a message.

        Returns:
            The content.

        Raises:
            DatasetError: If it is no such object, lacks keys, or is of a newer version.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT_NAME:
            raise DatasetError(f"{name} does not describe a latents dataset. {_AGAIN}")
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise DatasetError(
                f"{name} has format version {version}, this sa3lora reads {FORMAT_VERSION}. "
                "Update sa3lora, or run sa3lora prep again."
            )
        known = {item.name for item in fields(cls)}
        missing = sorted(known - set(values))
        if missing:
            raise DatasetError(f"{name} is damaged: it lacks {', '.join(missing)}. {_AGAIN}")
        wrong = [key for key in known if not isinstance(values[key], _KINDS[key])]
        if wrong:
            listed = ", ".join(sorted(wrong))
            raise DatasetError(f"{name} is damaged: the value of {listed} cannot be. {_AGAIN}")
        return cls(**{key: value for key, value in values.items() if key in known})


class ModelIdentity(Protocol):
    """What is needed to know of a model to tell whether latents belong to it."""

    @property
    def name(self) -> str:
        """Registry name or folder."""

    @property
    def ae_hash(self) -> str:
        """Hash of the autoencoder's weights."""


def check_model(meta: DatasetMeta, source: ModelIdentity) -> None:
    """Refuse latents that another autoencoder made.

    Models that share an autoencoder, such as a base model and its post-trained sibling, share
    datasets too.

    Args:
        meta: Of the dataset.
        source: The model about to use it.

    Raises:
        DatasetError: If the autoencoders differ; the message names the model that fits.
    """
    if meta.ae_hash != source.ae_hash:
        raise DatasetError(
            f"this dataset holds latents of {meta.model} (autoencoder {meta.ae_hash[:12]}), "
            f"{source.name} has another autoencoder ({source.ae_hash[:12]}).\n"
            f"Use {meta.model} or a model with the same autoencoder, "
            f"or prepare the audio again with --model {source.name} and another -o."
        )
