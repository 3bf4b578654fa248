"""Writing an evaluation: JSON, a page, TensorBoard scalars, whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sa3lora.audio import read_audio, spectrogram_png
from sa3lora.errors import AudioError, EvaluationError
from sa3lora.evaluation.page import PICTURED_CLIPS, picture_path, render_page
from sa3lora.evaluation.result import PAGE_NAME, RESULT_NAME, EvaluationResult
from sa3lora.evaluation.scores import Score
from sa3lora.runs import write_bytes_atomic, write_json_atomic


def check_output(folder: Path) -> None:
    """Make sure that a folder may be replaced: it is missing, empty or an earlier evaluation.

    Raises:
        EvaluationError: If it holds anything else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is a file. Give another folder with -o.")
    if any(folder.iterdir()) and not (folder / RESULT_NAME).is_file():
        raise EvaluationError(
            f"{folder} holds other files and no earlier evaluation. Give another folder with -o."
        )


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to fill, which takes the place of `folder` when the block succeeds.

    After a failure `folder` is as it was, and nothing half-written is left.

    Raises:
        EvaluationError: If `folder` holds something that is no evaluation.
    """
    check_output(folder)
    mark = secrets.token_hex(4)
    fresh = folder.with_name(f".{folder.name}.{mark}.tmp")
    old = folder.with_name(f".{folder.name}.{mark}.old")
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
    except OSError as error:  # the name of the folder in the making means nothing
        if error.errno is None or str(fresh) not in str(error.filename or fresh):
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error
    except AudioError as error:
        if fresh not in Path(error.path).parents:
            raise
        path = folder / Path(error.path).relative_to(fresh)
        raise AudioError(path, error.reason, error.advice) from error
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_report(result: EvaluationResult, folder: Path) -> None:
    """Write `evaluation.json`, `report.html`, its pictures and TensorBoard events into a folder.

    Args:
        result: What was found; paths of its clips lie below `folder`.
        folder: Exists already and holds the audio.
    """
    for clip in result.clips[:PICTURED_CLIPS]:
        for path in (clip.base, clip.adapter):
            picture = spectrogram_png(*read_audio(folder / path))
            write_bytes_atomic(folder / picture_path(path), picture)
    write_bytes_atomic(folder / PAGE_NAME, render_page(result).encode())
    _write_events(result, folder)
    write_json_atomic(folder / RESULT_NAME, result.to_json())


def _write_events(result: EvaluationResult, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    try:
        for score in result.scores:
            sides = {"base": score.base, "adapter": score.adapter, "difference": score.difference}
            for name, estimate in sides.items():
                if estimate is not None:
                    writer.add_scalar(f"{_tag(score)}/{name}", estimate.value, 0)
            # The HPARAMS tab of the run names these columns (training/hparams.py).
            if score.adapter is not None:
                writer.add_scalar(f"score/{score.key}", score.adapter.value, 0)
        writer.add_text("evaluation/verdicts", "\n\n".join(result.verdicts), 0)
    finally:
        writer.close()


def _tag(score: Score) -> str:
    """Name a scalar so that values measured differently never share a curve."""
    context = score.context
    parts = [context.embedder.replace("/", "-")]
    if context.window_s is not None:
        parts.append(f"{context.window_s:g}s")
    parts.append(f"n{context.num_clips}")
    if context.reference_hash:
        parts.append(f"ref-{context.reference_hash[:8]}")
    return f"evaluation/{score.key} {' '.join(parts)}"
