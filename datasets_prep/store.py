"""The dataset folder between two preps: what it was made with, which of its clips still hold."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets_prep.scan import SourceFacts
from datasets_prep.segment import Segment
from sa3lora.errors import DatasetError
from sa3lora.latents.manifest import read_silence, remove_manifest
from sa3lora.latents.schema import PREP_FOLDER, ClipRow
from sa3lora.latents.shards import (
    LatentColumn,
    list_shards,
    open_shard,
    read_rows,
    remove_leftovers,
    write_shard,
)
from sa3lora.runs import write_json_atomic

_log = logging.getLogger(__name__)
_OPTIONS = "options.json"
_CHECKS = "checks.json"
_NAMED = 5


def read_options(out: Path) -> dict[str, Any] | None:
    """Tell what a dataset folder was begun with.

    Args:
        out: The folder; may be missing.

    Returns:
        Its options, or None if nothing is there yet.

    Raises:
        DatasetError: If something else lies there.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise DatasetError(f"{out} is a file. Give -o a folder.")
    path = out / PREP_FOLDER / _OPTIONS
    try:
        options: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any(out.iterdir()):
            raise DatasetError(
                f"{out} holds other things and is not a latents dataset. Give another -o."
            ) from None
        return None
    except ValueError as error:
        raise DatasetError(f"{path} is damaged: {error}. Delete {out} and run again.") from error
    return options


def check_options(out: Path, *, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to mix clips that were made in different ways.

    Args:
        out: The dataset folder.
        stored: What it was begun with.
        wanted: What this prep would use.

    Raises:
        DatasetError: Naming each difference.
    """
    # The name is for people: models with the same autoencoder make the same latents.
    differing = [key for key in wanted if key != "model" and stored.get(key) != wanted[key]]
    if not differing:
        return
    if "ae_hash" in differing:
        what = f"the model {stored.get('model')}, this is {wanted['model']}"
    else:
        what = ", ".join(f"{key} {stored.get(key)}, this is {wanted[key]}" for key in differing)
    raise DatasetError(
        f"{out} was prepared with {what}.\n"
        "Give another -o, the same options, or delete that folder first."
    )


def begin(out: Path, *, options: Mapping[str, Any]) -> None:
    """Make the folder, or tidy up what a killed prep left in it.

    Args:
        out: The dataset folder.
        options: What it is begun with.
    """
    try:
        (out / PREP_FOLDER).mkdir(parents=True, exist_ok=True)
        write_json_atomic(out / PREP_FOLDER / _OPTIONS, dict(options))
        remove_leftovers(out)
    except OSError as error:
        raise not_written(out, error) from error


def not_written(out: Path, error: OSError) -> DatasetError:
    """Say that the dataset folder takes no more, and why."""
    return DatasetError(
        f"cannot write to {out}: {error.strerror or error}. "
        "Make room there or make it writable, then run the command again, or give another -o."
    )


def abandon(out: Path) -> None:
    """Remove a folder that this prep made and put no clip into.

    Args:
        out: The dataset folder.
    """
    if out.is_dir() and not list_shards(out):
        shutil.rmtree(out)


def read_checks(out: Path) -> dict[str, SourceFacts]:
    """Read what earlier preps found in files, so that those are not decoded again.

    Args:
        out: The dataset folder; may be missing.

    Returns:
        Facts by hash of the file's bytes; nothing if they are missing or damaged.
    """
    path = out / PREP_FOLDER / _CHECKS
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {
            key: SourceFacts(**{**value, "segments": [Segment(*s) for s in value["segments"]]})
            for key, value in stored.items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError):
        _log.warning("%s is damaged: all files are checked again", path)
        return {}


def write_checks(out: Path, facts: Sequence[SourceFacts]) -> None:
    """Keep what was found in files.

    Args:
        out: The dataset folder.
        facts: Of the usable ones.
    """
    values = {item.source_sha256: asdict(item) for item in facts}
    for value in values.values():
        value["segments"] = [[s["start"], s["num_samples"]] for s in value["segments"]]
    write_json_atomic(out / PREP_FOLDER / _CHECKS, values)


def has_silence(out: Path, *, channels: int) -> bool:
    """Tell whether the encoded silence is there and whole.

    Args:
        out: The dataset folder.
        channels: Latent channels.

    Returns:
        False if it must be made.
    """
    try:
        read_silence(out, channels=channels)
    except DatasetError:
        return False
    return True


def present_clips(out: Path) -> set[str]:
    """List the clips in readable shards, as an estimate of what is done.

    Args:
        out: The dataset folder; may be missing.

    Returns:
        Identities of clips.
    """
    present: set[str] = set()
    for path in list_shards(out) if out.is_dir() else []:
        try:
            present.update(open_shard(path).column("clip_id").to_pylist())
        except DatasetError:
            continue  # `reconcile` says so when it removes the shard
    return present


def reconcile(out: Path, *, wanted: Mapping[str, ClipRow], channels: int) -> set[str]:
    """Make the shards hold only clips that are still wanted, with what is said of them today.

    Latents are never encoded for a new caption, name or split: only their row is written again.
    What leaves or changes is logged.

    Args:
        out: The dataset folder.
        wanted: Rows that the dataset shall have, by clip.
        channels: Latent channels.

    Returns:
        The clips that the shards hold.
    """
    present: set[str] = set()
    changes = _Changes(wanted)
    for path in list_shards(out):
        try:
            table = open_shard(path)
            latents = LatentColumn(table, channels=channels)
        except DatasetError as error:
            _log.warning("%s Its clips are encoded again.", str(error).partition(" Run ")[0])
            remove_manifest(out)
            path.unlink()
            continue
        rows = read_rows(table)
        kept: list[tuple[int, ClipRow]] = []
        for number, row in enumerate(rows):
            target = wanted.get(row.clip_id)
            fits = target is not None and target.num_frames == row.num_frames
            if target is None or not fits or row.clip_id in present:
                changes.dropped(row)
                continue
            present.add(row.clip_id)
            changes.kept(row, target)
            kept.append((number, target))
        if [row for _, row in kept] == rows:
            continue
        remove_manifest(out)
        if kept:
            # Before the old shard goes: a crash between the two leaves a clip twice, never none.
            write_shard(
                out,
                rank=0,
                rows=[row for _, row in kept],
                latents=[latents.view(number) for number, _ in kept],
            )
        path.unlink()
    changes.log()
    return present


class _Changes:
    """What differs between the shards and the plan, to be told in a few lines."""

    def __init__(self, wanted: Mapping[str, ClipRow]) -> None:
        self._hashes = {row.source: row.source_sha256 for row in wanted.values()}
        self._wanted = wanted
        self._gone: Counter[str] = Counter()
        self._changed: Counter[str] = Counter()
        self._other: Counter[str] = Counter()
        self._rows: dict[str, set[str]] = {}

    def dropped(self, row: ClipRow) -> None:
        today = self._hashes.get(row.source)
        if row.clip_id in self._wanted:
            return  # twice in the shards, after a crash: nothing is lost
        if today is None:
            self._gone[row.source] += 1
        elif today != row.source_sha256:
            self._changed[row.source] += 1
        else:
            self._other[row.source] += 1

    def kept(self, row: ClipRow, target: ClipRow) -> None:
        for name in ("caption", "split", "source", "tags", "licence", "attribution"):
            if getattr(row, name) != getattr(target, name):
                self._rows.setdefault(name, set()).add(target.source)

    def log(self) -> None:
        if self._gone:
            _log.warning("no longer there or not usable, their clips leave the dataset: %s",
                         _names(self._gone))  # fmt: skip
        if self._changed:
            _log.warning("changed since they were encoded, encoded again: %s",
                         _names(self._changed))  # fmt: skip
        if self._other:
            _log.warning("cut in another way now, encoded again: %s", _names(self._other))
        for name, sources in sorted(self._rows.items()):
            _log.warning("new %s without encoding: %s", name, _names(sources))


def _names(sources: Counter[str] | set[str]) -> str:
    names = sorted(sources)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
