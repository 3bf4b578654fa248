from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from tensorboard.summary.writer.record_writer import RecordWriter

from sa3lora.audio import spectrogram_png
from sa3lora.training.tracking import Tracker, bucket_losses


def _read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "audio": 0}).Reload()


def test_a_resumed_run_logs_every_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # files of one second are read in the order of a counter, as text: 10 comes before 9
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    with Tracker(tmp_path, first_step=1) as tracker:
        for step in (1, 2, 3):
            tracker.scalars({"loss": float(step)}, step)
    with Tracker(tmp_path, first_step=3) as tracker:
        for step in (3, 4):
            tracker.scalars({"loss": 10.0 * step}, step)
    scalars = _read(tmp_path).Scalars("loss")
    assert [(s.step, s.value) for s in scalars] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_audio_keeps_both_channels_and_gets_a_picture(tmp_path: Path) -> None:
    audio = torch.stack([torch.full((800,), 0.5), torch.full((800,), -0.25)])
    with Tracker(tmp_path, first_step=1) as tracker:
        tracker.audio("preview/01/base", audio, sample_rate=8000, step=1)
    events = _read(tmp_path)
    samples, rate = soundfile.read(
        io.BytesIO(events.Audio("preview/01/base")[0].encoded_audio_string)
    )
    assert rate == 8000
    assert samples[0].tolist() == pytest.approx([0.5, -0.25], abs=1e-4)
    (picture,) = events.Images("preview/01/base/spectrogram")
    assert picture.encoded_image_string == spectrogram_png(audio, 8000)
    assert picture.step == 1


def test_settings_stay_in_the_run_s_own_folder(tmp_path: Path) -> None:
    with Tracker(tmp_path, first_step=1) as tracker:
        tracker.hparams({"adapter.r": 4}, {"hparams/difference": -0.5})
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert _read(tmp_path).Scalars("hparams/difference")[0].value == -0.5


def test_a_tracker_that_is_off_writes_nothing(tmp_path: Path) -> None:
    with Tracker(tmp_path, first_step=1, enabled=False) as tracker:
        tracker.scalars({"loss": 1.0}, 1)
        tracker.hparams({"a": 1}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RecordWriter, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def log() -> None:
        with Tracker(tmp_path, first_step=1) as tracker:
            monkeypatch.setattr(RecordWriter, "write", full)
            for step in range(100):
                tracker.scalars({"loss": 1.0}, step)

    with pytest.raises(OSError, match="No space left on device") as caught:
        log()
    assert caught.value.filename == str(tmp_path)


def test_losses_fall_into_fifths_of_time() -> None:
    assert bucket_losses([0.1, 0.15, 0.5, 1.0], [1.0, 2.0, 5.0, 7.0]) == {
        "loss_by_t/0.0-0.2": 1.5,
        "loss_by_t/0.4-0.6": 5.0,
        "loss_by_t/0.8-1.0": 7.0,
    }
