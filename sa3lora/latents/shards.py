"""Arrow shards: written whole or not at all, read without copying latents."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter

from sa3lora.errors import DatasetError
from sa3lora.latents.schema import ClipRow, row_features

_SHARD = re.compile(r"shard-(\d+)-(\d+)\.arrow")
_LEFTOVER = re.compile(r"\.shard-.*\.tmp")
FrameArray = npt.NDArray[np.float16]


def list_shards(root: Path) -> list[Path]:
    """Find the complete shards of a dataset folder.

    Args:
        root: The folder.

    Returns:
        Shards by rank, then by number.
    """
    found = [(match, path) for path in root.iterdir() if (match := _SHARD.fullmatch(path.name))]
    found.sort(key=lambda item: (int(item[0][1]), int(item[0][2])))
    return [path for _, path in found]


def remove_leftovers(root: Path) -> None:
    """Delete unfinished shards of a process that was killed.

    Args:
        root: A dataset folder that no other process writes to.
    """
    for path in root.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            path.unlink()


def write_shard(
    root: Path, *, rank: int, rows: Sequence[ClipRow], latents: Sequence[FrameArray]
) -> Path:
    """Write clips as the next shard of a process.

    The file appears under its name only once it is complete and on disk.

    Args:
        root: The dataset folder.
        rank: Number of this process; shards of other ranks are never touched.
        rows: At least one.
        latents: One (T, C) array a row.

    Returns:
        The shard.

    Raises:
        DatasetError: If the disk is full or cannot be written; nothing half-written stays.
    """
    temporary = root / f".shard-{rank}-{secrets.token_hex(4)}.tmp"
    numbers = [
        int(m[2])
        for path in list_shards(root)
        if (m := _SHARD.fullmatch(path.name))
        if int(m[1]) == rank
    ]
    target = root / f"shard-{rank}-{max(numbers, default=-1) + 1}.arrow"
    try:
        with open(temporary, "xb") as stream:
            # The stream is ours: the writer's own would not be synced, and closing it hides errors.
            with ArrowWriter(features=row_features(), stream=stream) as writer:
                # One batch a clip: its latent is then one contiguous buffer of a bounded size.
                schema = row_features().arrow_schema
                for row, latent in zip(rows, latents, strict=True):
                    writer.write_table(_row_table(row, latent, schema=schema))
                writer.finalize(close_stream=False)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise DatasetError(
            f"cannot write {target}: {error.strerror or error}. "
            "Complete shards are kept: make room and run the same command again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _row_table(row: ClipRow, latent: FrameArray, *, schema: pa.Schema) -> pa.Table:
    values = row.to_columns()
    flat = pa.array(np.ascontiguousarray(latent, dtype=np.float16).reshape(-1))
    offsets = pa.array([0, len(flat)], pa.int32())
    columns = [
        pa.ListArray.from_arrays(offsets, flat)
        if item.name == "latent"
        else pa.array([values[item.name]], item.type)
        for item in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def open_shard(path: Path) -> pa.Table:
    """Map a shard into memory.

    Args:
        path: The shard.

    Returns:
        Its table; latents are read from disk only when touched.

    Raises:
        DatasetError: If the file is missing, cut short or of other columns.
    """
    try:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(
            f"{path} is damaged ({error}). Run the same sa3lora prep again: it encodes those "
            "clips anew."
        ) from error
    expected = row_features().arrow_schema
    if not table.schema.equals(expected, check_metadata=False):
        raise DatasetError(f"{path} does not have the columns of a latents dataset.")
    return table


def read_rows(table: pa.Table) -> list[ClipRow]:
    """Read what a table says about its clips, without their latents.

    Args:
        table: With the columns of a dataset.

    Returns:
        One row a clip, in order.
    """
    return [ClipRow.from_columns(values) for values in table.drop_columns("latent").to_pylist()]


class LatentColumn:
    """Views of the latents of a table, by row, without a copy."""

    def __init__(self, table: pa.Table, *, channels: int) -> None:
        """Take the column apart once.

        Args:
            table: With the columns of a dataset; it stays mapped as long as this lives.
            channels: Latent channels C.

        Raises:
            DatasetError: If a latent does not have `num_frames` times `channels` values.
        """
        self._channels = channels
        self._chunks: list[tuple[FrameArray, npt.NDArray[np.int32]]] = []
        starts = [0]
        for chunk in table.column("latent").chunks:
            values = chunk.values.to_numpy(zero_copy_only=True)
            self._chunks.append((values, chunk.offsets.to_numpy(zero_copy_only=True)))
            starts.append(starts[-1] + len(chunk))
        self._starts = np.asarray(starts)
        self._check(table)

    def _check(self, table: pa.Table) -> None:
        frames = table.column("num_frames").to_numpy()
        sizes = [np.diff(offsets) for _, offsets in self._chunks]
        found = np.concatenate(sizes) if sizes else np.zeros(0, dtype=np.int32)
        wrong = np.flatnonzero(found != frames.astype(np.int64) * self._channels)
        if len(wrong):
            clip_id = table.column("clip_id")[int(wrong[0])].as_py()
            raise DatasetError(
                f"clip {clip_id} holds {found[wrong[0]]} numbers, {frames[wrong[0]]} frames of "
                f"{self._channels} channels need {frames[wrong[0]] * self._channels}."
            )

    def view(self, row: int) -> FrameArray:
        """Give one latent as it lies in the file.

        Args:
            row: Number of the row.

        Returns:
            Read-only float16 array (T, C).
        """
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        values, offsets = self._chunks[number]
        local = row - int(self._starts[number])
        flat = values[offsets[local] : offsets[local + 1]]
        return flat.reshape(-1, self._channels)
