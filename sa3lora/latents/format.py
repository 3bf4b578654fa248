"""Reading a latents dataset.

The folder opens with plain `datasets.load_from_disk` too; this reader adds what training needs:
latents as tensors without going through Python lists, a fixed order, and checks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sa3lora.errors import DatasetError
from sa3lora.latents.manifest import read_meta, read_silence, row_order
from sa3lora.latents.schema import SPLITS, STATE_NAME, ClipRow, DatasetMeta, check_model
from sa3lora.latents.shards import FrameArray, LatentColumn, open_shard, read_rows

__all__ = ["Clip", "DatasetMeta", "LatentsDataset", "check_model"]


@dataclass(frozen=True)
class Clip:
    """One clip of a dataset with its latent, (C, T) float32."""

    clip_id: str
    latent: Tensor
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


class LatentsDataset:
    """A latents dataset, or one split of it, in the order of source and start.

    The order does not depend on how many processes made the dataset. Latents stay on disk until
    asked for. It can be sent to a spawned worker, which maps the files again.
    """

    def __init__(
        self,
        root: Path,
        *,
        split: str | None,
        meta: DatasetMeta,
        silence: Tensor,
        rows: list[ClipRow],
        numbers: list[int],
        latents: LatentColumn,
    ) -> None:
        """Hold opened parts; use `LatentsDataset.open`."""
        self.root = root
        self.split = split
        self.meta = meta
        self.silence = silence
        self.rows = rows
        self._numbers = numbers
        self._latents = latents

    @classmethod
    def open(cls, root: str | Path, *, split: str | None = None) -> LatentsDataset:
        """Open a dataset that `sa3lora prep` finished.

        Args:
            root: Its folder.
            split: `train`, `validation` or `test`; None takes all clips. A split without clips
                opens with length 0.

        Returns:
            The dataset.

        Raises:
            DatasetError: If the folder is missing, no dataset, unfinished or damaged, or the
                split has another name.
        """
        folder = Path(root)
        if split is not None and split not in SPLITS:
            raise DatasetError(f"no split {split!r}: the splits are {', '.join(SPLITS)}.")
        meta = read_meta(folder)
        shards = [open_shard(folder / name) for name in _shard_names(folder)]
        if not shards:
            raise DatasetError(f"{folder} holds no clips. Run sa3lora prep again.")
        table = pa.concat_tables(shards)
        rows = read_rows(table)
        if len(rows) != meta.counts["clips"]:
            raise DatasetError(
                f"{folder} holds {len(rows)} clips, its dataset.json says "
                f"{meta.counts['clips']}. Run the same sa3lora prep again."
            )
        chosen = [n for n, row in enumerate(rows) if split in (None, row.split)]
        chosen.sort(key=lambda number: row_order(rows[number]))
        return cls(
            folder,
            split=split,
            meta=meta,
            silence=read_silence(folder, channels=meta.channels),
            rows=[rows[number] for number in chosen],
            numbers=chosen,
            latents=LatentColumn(table, channels=meta.channels),
        )

    def __reduce__(self) -> tuple[Any, tuple[str, str | None]]:
        """Send only the place: a memory map cannot travel between processes."""
        return _reopen, (str(self.root), self.split)

    def __len__(self) -> int:
        """Count the clips."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Clip:
        """Read one clip.

        Args:
            index: Its number, negative from the end.

        Returns:
            The clip; its latent is a float32 copy.
        """
        row = self.rows[index]
        frames = np.ascontiguousarray(self.latent_view(index).T, dtype=np.float32)
        values = {item.name: getattr(row, item.name) for item in fields(row)}
        return Clip(latent=torch.from_numpy(frames), **values)

    def latent_view(self, index: int) -> FrameArray:
        """Give one latent as it lies in the file, without a copy.

        Args:
            index: Number of the clip.

        Returns:
            Read-only float16 array (T, C).
        """
        return self._latents.view(self._numbers[index])

    @property
    def num_frames(self) -> list[int]:
        """Latent frames of every clip, without reading latents."""
        return [row.num_frames for row in self.rows]

    @property
    def captions(self) -> list[str]:
        """Caption of every clip."""
        return [row.caption for row in self.rows]


def _reopen(root: str, split: str | None) -> LatentsDataset:
    return LatentsDataset.open(root, split=split)


def _shard_names(folder: Path) -> list[str]:
    path = folder / STATE_NAME
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return [str(item["filename"]) for item in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{path} is missing or damaged. Run the same sa3lora prep again."
        ) from error
