from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.training.data import TextEmbeddings, TrainingData


def test_a_position_in_the_data_leads_to_the_same_batches(
    source: ModelSource, make_recipe: Callable[..., Recipe]
) -> None:
    first = TrainingData(make_recipe(), source=source)
    first.next_batch()
    state = first.state_dict()
    expected = [first.next_batch().clip_ids for _ in range(4)]
    again = TrainingData(make_recipe(), source=source)
    again.load_state_dict(state)
    assert [again.next_batch().clip_ids for _ in range(4)] == expected


def test_what_was_only_looked_at_moves_no_position_and_comes_again(
    source: ModelSource, make_recipe: Callable[..., Recipe]
) -> None:
    data = TrainingData(make_recipe(), source=source)
    start = data.state_dict()
    ahead = [data.next_round()[0] for _ in range(3)]
    assert data.state_dict() == start
    data.take(ahead[0])
    assert data.state_dict() == ahead[0].state != start
    data.rewind()
    assert [data.next_round()[0] for _ in range(2)] == ahead[1:]


def test_the_text_encoder_is_loaded_once_and_then_never(
    source: ModelSource, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TrainingData(make_recipe(), source=source)
    first = TextEmbeddings(data, source)
    assert first.build(sorted(data.captions())) == 4

    def refuse(**_: object) -> None:
        raise AssertionError("the text encoder was loaded though everything is cached")

    monkeypatch.setattr(source, "load_text_encoder", refuse)
    second = TextEmbeddings(data, source)
    assert second.build(sorted(data.captions())) == 0
    for caption in data.captions():
        assert torch.equal(second(caption), first(caption))


def test_room_for_silence_never_goes_beyond_the_longest_clip(
    source: ModelSource, make_recipe: Callable[..., Recipe]
) -> None:
    data = TrainingData(make_recipe("objective.silence_s=100"), source=source)
    assert data.extra_frames <= data.max_frames - min(data.train.num_frames)


def test_silence_s_is_the_mean_silence_behind_a_clip_and_counts_as_real(
    source: ModelSource, make_recipe: Callable[..., Recipe]
) -> None:
    # 0.08 s are 20 frames of the small model, far beneath its longest clip
    data = TrainingData(make_recipe("objective.silence_s=0.08"), source=source)
    silence = []
    for _ in range(150):
        batch = data.next_batch()
        for row, clip_id in enumerate(batch.clip_ids):
            own = next(r.num_frames for r in data.train.rows if r.clip_id == clip_id)
            silence.append(int(batch.mask[row].sum()) - own)
            assert batch.seconds[row] == pytest.approx(own * data.frame_s)
    # the floor takes half a frame; within three standard errors of an exponential's mean
    assert abs(sum(silence) / len(silence) - 19.5) < 3 * 20 / len(silence) ** 0.5
    none = TrainingData(make_recipe("objective.silence_s=0"), source=source)
    assert int(none.next_batch().mask.sum(dim=1).max()) <= max(none.train.num_frames)
