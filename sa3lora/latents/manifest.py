"""The files beside the shards, which make a folder of shards a dataset."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetInfo
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sa3lora.errors import DatasetError
from sa3lora.latents.schema import (
    INFO_NAME,
    META_NAME,
    PREP_FOLDER,
    SILENCE_NAME,
    SPLITS,
    STATE_NAME,
    ClipRow,
    DatasetMeta,
    row_features,
)
from sa3lora.latents.shards import LatentColumn, list_shards, open_shard, read_rows
from sa3lora.runs import write_bytes_atomic, write_json_atomic


def remove_manifest(root: Path) -> None:
    """Mark a dataset as unfinished while its shards change.

    Args:
        root: The dataset folder.
    """
    for name in (META_NAME, STATE_NAME, INFO_NAME):
        (root / name).unlink(missing_ok=True)


def write_manifest(root: Path, meta: DatasetMeta) -> None:
    """Declare the complete shards of a folder a dataset.

    `dataset.json` is written last: where it is, everything else is.

    Args:
        root: The dataset folder.
        meta: What `dataset.json` shall say.
    """
    write_json_atomic(root / INFO_NAME, _dataset_info())
    write_json_atomic(root / STATE_NAME, _state(root, meta))
    write_json_atomic(root / META_NAME, meta.to_json())


def _dataset_info() -> dict[str, Any]:
    info = DatasetInfo(features=row_features())
    # The library's own way through JSON: its feature types know how to write themselves.
    text = json.dumps(
        {
            "citation": info.citation,
            "description": info.description,
            "features": info.features.to_dict(),
            "homepage": info.homepage,
            "license": info.license,
        }
    )
    content: dict[str, Any] = json.loads(text)
    return content


def manifest_is_current(root: Path, meta: DatasetMeta) -> bool:
    """Tell whether the manifest already says all that `write_manifest` would write.

    Args:
        root: The dataset folder.
        meta: What `dataset.json` should say.

    Returns:
        False if any of its files is missing, damaged or says something else.
    """
    try:
        listed = json.loads((root / STATE_NAME).read_text(encoding="utf-8"))
        info = json.loads((root / INFO_NAME).read_text(encoding="utf-8"))
        return listed == _state(root, meta) and info == _dataset_info() and read_meta(root) == meta
    except (OSError, ValueError, DatasetError):
        return False


def _state(root: Path, meta: DatasetMeta) -> dict[str, Any]:
    return {
        "_data_files": [{"filename": path.name} for path in list_shards(root)],
        "_fingerprint": meta.fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }


def read_meta(root: Path) -> DatasetMeta:
    """Read `dataset.json`.

    Args:
        root: The dataset folder.

    Returns:
        Its content.

    Raises:
        DatasetError: If the folder is missing, is no dataset, or its prep did not finish.
    """
    path = root / META_NAME
    if not root.is_dir():
        if root.exists():
            raise DatasetError(f"{root} is a file. Give the folder that sa3lora prep wrote.")
        raise DatasetError(f"there is no folder {root}. Make it: sa3lora prep AUDIO_DIR -o {root}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (root / PREP_FOLDER).is_dir():
            raise DatasetError(
                f"{root} is unfinished: run the same sa3lora prep again, it goes on where it "
                "stopped."
            ) from None
        raise DatasetError(
            f"{root} is not a latents dataset (it has no {META_NAME}). "
            "Make one from audio: sa3lora prep AUDIO_DIR -o DATASET"
        ) from None
    except ValueError as error:
        raise DatasetError(f"{path} is damaged: {error}. Run sa3lora prep again.") from error
    return DatasetMeta.from_json(values, name=str(path))


def write_silence(root: Path, latent: Tensor) -> None:
    """Keep the latent of encoded silence.

    Args:
        root: The dataset folder.
        latent: (C, T) of real silence through the autoencoder.
    """
    data = save_tensors({"latent": latent.to(torch.float16).contiguous()})
    write_bytes_atomic(root / SILENCE_NAME, data)


def read_silence(root: Path, *, channels: int) -> Tensor:
    """Read the latent of silence.

    Args:
        root: The dataset folder.
        channels: Latent channels C.

    Returns:
        (C, T) float32.

    Raises:
        DatasetError: If it is missing or damaged.
    """
    path = root / SILENCE_NAME
    try:
        tensors = load_tensors(path.read_bytes())
    except FileNotFoundError:
        raise DatasetError(f"{root} lacks {SILENCE_NAME}. Run the same prep again.") from None
    except SafetensorError as error:
        raise DatasetError(f"{path} is damaged ({error}). Run the same prep again.") from error
    latent: Tensor | None = tensors.get("latent")
    if latent is None or latent.dim() != 2 or latent.shape[0] != channels or not latent.shape[1]:
        raise DatasetError(f"{path} does not hold a latent of {channels} channels.")
    return latent.float()


def collect_rows(root: Path, *, channels: int) -> tuple[list[ClipRow], str]:
    """Read all complete shards.

    Args:
        root: The dataset folder.
        channels: Latent channels C.

    Returns:
        Rows by source and start, and the fingerprint of rows and latents: the same for the same
        content, however it is spread over shards.

    Raises:
        DatasetError: If a shard is damaged.
    """
    entries: list[tuple[ClipRow, str]] = []
    for path in list_shards(root):
        table = open_shard(path)
        latents = LatentColumn(table, channels=channels)
        for number, row in enumerate(read_rows(table)):
            entries.append((row, hashlib.sha256(latents.view(number).data).hexdigest()))
    entries.sort(key=lambda entry: row_order(entry[0]))
    digest = hashlib.sha256()
    for row, latent_hash in entries:
        text = json.dumps([row.to_columns(), latent_hash], sort_keys=True)
        digest.update(text.encode())
    return [row for row, _ in entries], digest.hexdigest()


def row_order(row: ClipRow) -> tuple[str, float, str]:
    """Order clips the same way however they were spread over processes.

    Args:
        row: A clip.

    Returns:
        Sort key: source, start, identity.
    """
    return row.source, row.start_s, row.clip_id


def summarise(rows: Sequence[ClipRow]) -> dict[str, Any]:
    """Count clips.

    Args:
        rows: All rows of a dataset.

    Returns:
        `counts`, `seconds` and `captions` as `dataset.json` has them.
    """
    seconds = {split: sum(r.duration_s for r in rows if r.split == split) for split in SPLITS}
    counts = {"clips": len(rows), "sources": len({row.source for row in rows})}
    counts |= {split: sum(row.split == split for row in rows) for split in SPLITS}
    return {
        "counts": counts,
        "seconds": {
            name: round(value, 3)
            for name, value in {"total": sum(seconds.values()), **seconds}.items()
        },
        "captions": dict(sorted(Counter(row.caption_source for row in rows).items())),
    }
