from __future__ import annotations

import pytest
import torch

from sa3lora.latents.batching import Crop, collate
from sa3lora.latents.collate import silence_frames
from sa3lora.latents.format import Clip

SILENCE = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])


def make_clip(num_frames: int, *, duration_s: float | None = None) -> Clip:
    latent = torch.arange(2.0 * num_frames).view(2, num_frames) + 100
    seconds = num_frames * 0.25 if duration_s is None else duration_s
    return Clip(
        str(num_frames), latent, num_frames, f"caption {num_frames}", "sidecar", {},
        seconds, 0.0, "a.wav", "0", seconds, "train",
    )  # fmt: skip


def put(clips, **options):
    return collate(clips, silence=SILENCE, sample_rate=8, ratio=2, **options)


def test_padding_is_encoded_silence_and_absent():
    batch = put([make_clip(6), make_clip(2)])
    assert batch.latents.shape == (2, 2, 6)
    assert batch.mask.tolist() == [[True] * 6, [True] * 2 + [False] * 4]
    assert batch.latents[1, 0].tolist() == [100, 101, 1, 2, 3, 1]
    assert torch.equal(batch.latents[0], make_clip(6).latent)


def test_seconds_are_those_of_the_clip():
    batch = put([make_clip(6, duration_s=1.4), make_clip(2)])
    assert batch.seconds.dtype == torch.float32
    assert batch.seconds.tolist() == pytest.approx([1.4, 0.5])


def test_a_crop_is_conditioned_on_its_own_length():
    clips = [make_clip(8), make_clip(8, duration_s=1.9)]
    batch = put(clips, crops=[Crop(0, 3, 4), Crop(1, 4, 4)])
    assert torch.equal(batch.latents[0], clips[0].latent[:, 3:7])
    # the last frame of the second clip is only partly filled
    assert batch.seconds.tolist() == pytest.approx([1.0, 0.9])


def test_extra_frames_give_room_behind_the_longest_clip():
    batch = put([make_clip(3)], extra_frames=2)
    assert batch.mask.tolist() == [[True, True, True, False, False]]
    assert batch.latents[0, :, 3:].tolist() == [[1, 2], [-1, -2]]


def test_the_silence_of_a_crop_is_real_and_its_length_does_not_count_as_music():
    batch = put([make_clip(6), make_clip(3)], crops=[Crop(0, 0, 6), Crop(1, 1, 2, 2)])
    assert batch.mask.tolist() == [[True] * 6, [True] * 4 + [False] * 2]
    assert batch.latents[1, 0].tolist() == [101, 102, 1, 2, 3, 1]
    assert batch.seconds.tolist() == pytest.approx([1.5, 0.5])


def test_texts_and_waste_are_reported():
    batch = put([make_clip(4), make_clip(2)])
    assert batch.captions == ["caption 4", "caption 2"]
    assert batch.clip_ids == ["4", "2"]
    assert batch.padding_waste == pytest.approx(0.25)


def test_only_latents_change_precision():
    batch = put([make_clip(4)]).to("cpu", dtype=torch.bfloat16)
    assert (batch.latents.dtype, batch.seconds.dtype) == (torch.bfloat16, torch.float32)


def test_silence_repeats_to_any_length():
    assert silence_frames(SILENCE, 7)[0].tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert silence_frames(SILENCE, 0).shape == (2, 0)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one clip"):
        put([])


def test_crops_must_match_the_clips():
    with pytest.raises(ValueError, match="1 clips need as many crops, got 0"):
        put([make_clip(2)], crops=[])
