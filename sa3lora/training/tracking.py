"""What a run writes for TensorBoard: one run a folder, events beside the recipe."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer import event_file_writer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from sa3lora.audio import spectrogram_png, wav_bytes
from sa3lora.training.hparams import Setting, hparams_summaries

TIME_BUCKETS = 5
_LAYOUT = {
    "adapter against base": {
        f"{title}, with its 95 % interval": [
            "Margin", [f"fit/{tag}", f"margins/{tag}_low", f"margins/{tag}_high"],
        ]
        for title, tag in {
            "held-out loss less the base's": "held_out_difference",
            "training loss less the base's": "training_difference",
            "gap: held-out less training": "gap",
        }.items()
    }
}  # fmt: skip


class Tracker:
    """Writer of one run's events; a tracker of a process that is not the main one writes nothing.

    Use it as a context manager: leaving it flushes and closes the file. A disk that refuses is an
    `OSError` that names the run's folder, from whichever call comes after the failure.
    """

    def __init__(self, folder: Path, *, first_step: int, enabled: bool = True) -> None:
        """Open the run's events.

        Args:
            folder: The run's folder.
            first_step: The first step that this process will log; what an earlier, killed process
                logged from there on is dropped.
            enabled: Whether to write at all.
        """
        self._folder = folder
        self._writer: SummaryWriter | None = None
        if enabled:
            purge_step = first_step if first_step > 1 else None
            with self._disk():
                self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def __enter__(self) -> Self:
        """Return itself."""
        self._hook = threading.excepthook
        threading.excepthook = self._on_thread_error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        try:
            if self._writer is not None:
                with self._disk():
                    self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        """Print no traceback of the thread that writes: the next call raises its error, named."""
        if type(args.thread).__module__ != event_file_writer.__name__:
            self._hook(args)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Name the folder: events are written by a thread whose errors know no file."""
        try:
            yield
        except OSError as error:
            if error.errno is None:
                raise
            raise OSError(error.errno, error.strerror, str(self._folder)) from error

    def forget_after(self, step: int) -> None:
        """Tell readers to drop what was written of later steps, because they are taken again."""
        if self._writer is None:
            return
        again = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        events: Any = self._writer.file_writer
        with self._disk():
            events.add_event(again)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars by tag."""
        if self._writer is not None:
            with self._disk():
                for tag, value in values.items():
                    self._writer.add_scalar(tag, value, step)

    def audio(self, tag: str, audio: Tensor, *, sample_rate: int, step: int) -> None:
        """Write audio (K, N) as it is, in stereo, and its spectrogram as a picture."""
        if self._writer is None:
            return
        samples = audio.detach().cpu().float().clamp(-1, 1)
        value = Summary.Audio(
            sample_rate=sample_rate,
            num_channels=audio.shape[0],
            length_frames=audio.shape[1],
            encoded_audio_string=wav_bytes(samples, sample_rate),
            content_type="audio/wav",
        )
        self._add(Summary(value=[Summary.Value(tag=tag, audio=value)]), step)
        picture = Summary.Image(encoded_image_string=spectrogram_png(samples, sample_rate))
        self._add(Summary(value=[Summary.Value(tag=f"{tag}/spectrogram", image=picture)]), step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text."""
        if self._writer is not None:
            with self._disk():
                self._writer.add_text(tag, text, step)

    def hparams(self, settings: Mapping[str, Setting], scores: Mapping[str, float]) -> None:
        """Write settings with final scores, which the HPARAMS tab compares between runs."""
        if self._writer is None:
            return
        # SummaryWriter.add_hparams would open a second run in a sub-folder.
        for summary in hparams_summaries(settings, run=self._folder.name):
            self._add(summary, None)
        with self._disk():
            for tag, score in scores.items():
                self._writer.add_scalar(tag, score, int(scores.get("score/adapter_step", 0)))

    def layout(self) -> None:
        """Describe charts with intervals, which TensorBoard's CUSTOM SCALARS tab shows."""
        if self._writer is not None:
            with self._disk():
                self._writer.add_custom_scalars(_LAYOUT)

    def _add(self, summary: Summary, step: int | None) -> None:
        if self._writer is not None:
            file = self._writer._get_file_writer()  # type: ignore[no-untyped-call]
            with self._disk():
                file.add_summary(summary, step)


def bucket_losses(t: Iterable[float], losses: Iterable[float]) -> dict[str, float]:
    """Average the losses of clips whose noise levels lie in the same fifth of [0, 1].

    Returns:
        One value for each fifth that occurs, by tag.
    """
    grouped: dict[int, list[float]] = {}
    for level, loss in zip(t, losses, strict=True):
        grouped.setdefault(min(int(level * TIME_BUCKETS), TIME_BUCKETS - 1), []).append(loss)
    width = 1.0 / TIME_BUCKETS
    return {
        f"loss_by_t/{bucket * width:.1f}-{(bucket + 1) * width:.1f}": sum(group) / len(group)
        for bucket, group in sorted(grouped.items())
    }
