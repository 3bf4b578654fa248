from __future__ import annotations

import pytest
import torch

from datasets_prep.encode import encode_clips, encode_one, encode_silence
from datasets_prep.plan import PlannedClip
from datasets_prep.segment import Segment
from sa3lora.errors import DatasetError
from sa3lora.latents.schema import ClipRow
from sa3lora.latents.shards import LatentColumn, list_shards, open_shard, read_rows


@pytest.fixture(scope="module")
def autoencoder(source):
    return source.load_autoencoder()


def planned(path, *, start: int = 0, num_samples: int = 1600, clip_id: str = "0f" * 16):
    frames = -(-num_samples // 32)
    row = ClipRow(clip_id, frames, "c", "sidecar", {}, num_samples / 8000, start / 8000,
                  path.name, "0", 1.0, "train")  # fmt: skip
    return PlannedClip(row, path, Segment(start, num_samples))


def run(clips, root, autoencoder, on_clip=lambda clip: None):
    encode_clips(clips, root=root, rank=0, autoencoder=autoencoder, device="cpu", on_clip=on_clip)


@pytest.mark.parametrize("num_samples", [32, 33, 320, 1000])
def test_a_latent_has_as_many_frames_as_the_audio_fills(autoencoder, num_samples):
    audio = torch.randn(2, num_samples) / 9
    latent = encode_one(audio, clip_id="ab" * 16, autoencoder=autoencoder, device="cpu")
    assert latent.shape == (12, -(-num_samples // 32))
    expected = autoencoder.encode(audio[None])[0][:, : latent.shape[1]]
    torch.testing.assert_close(latent.float(), expected, atol=3e-3, rtol=2e-3)


def test_a_clip_gets_the_same_latent_alone_and_among_others(tmp_path, autoencoder, write_noise):
    path = write_noise(tmp_path / "a.wav", seconds=1.0)
    clips = [planned(path, start=n * 1600, clip_id=f"{n:032d}") for n in range(4)]
    for name, part in (("all", clips), ("one", clips[2:3])):
        (tmp_path / name).mkdir()
        run(part, tmp_path / name, autoencoder)
    tables = [open_shard(list_shards(tmp_path / name)[0]) for name in ("all", "one")]
    views = [LatentColumn(table, channels=12) for table in tables]
    assert (views[0].view(2) == views[1].view(0)).all()


def test_an_interruption_keeps_what_was_encoded(tmp_path, autoencoder, write_noise):
    path = write_noise(tmp_path / "a.wav", seconds=1.0)
    clips = [planned(path, start=n * 1600, clip_id=f"{n:032d}") for n in range(4)]

    def interrupt(clip):
        if clip is clips[1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(clips, tmp_path, autoencoder, interrupt)
    (shard,) = list_shards(tmp_path)
    assert [row.clip_id for row in read_rows(open_shard(shard))] == [
        c.row.clip_id for c in clips[:2]
    ]


def test_a_file_that_became_shorter_is_named(tmp_path, autoencoder, write_noise):
    clip = planned(write_noise(tmp_path / "a.wav", seconds=0.1))
    with pytest.raises(DatasetError, match=r"a.wav changed while it was prepared"):
        run([clip], tmp_path, autoencoder)


def test_a_file_that_broke_is_named(tmp_path, autoencoder):
    (tmp_path / "a.wav").touch()
    with pytest.raises(DatasetError, match=r"a.wav changed while it was prepared: 0 bytes"):
        run([planned(tmp_path / "a.wav")], tmp_path, autoencoder)


def test_silence_is_encoded_and_as_long_as_the_model_allows(autoencoder):
    latent = encode_silence(autoencoder, device="cpu", max_s=0.5)
    expected = autoencoder.encode(torch.zeros(1, 2, 4000))[0][:, :125]
    assert latent.shape == (12, 125)
    torch.testing.assert_close(latent.float(), expected, atol=3e-3, rtol=2e-3)
