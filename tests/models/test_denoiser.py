from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sa3lora.errors import ModelError
from sa3lora.models import Denoiser, ModelSource
from sa3lora.models.denoiser import PromptConditioner


def prompts(source: ModelSource, *lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(n, source.config.cond_dim, generator=generator) for n in lengths]


def test_the_duration_token_follows_the_padded_prompt(
    source: ModelSource, denoiser: Denoiser
) -> None:
    cond = denoiser.condition(prompts(source, 3, 5), torch.tensor([1.0, 20.0]))
    limit = source.config.max_prompt_tokens
    assert cond.cross.shape == (2, limit + 1, source.config.cond_dim)
    assert torch.equal(cond.cross[:, -1], cond.global_cond)
    assert cond.mask.sum(dim=1).tolist() == [4, 6]
    assert cond.mask[:, -1].all()


def test_padding_and_empty_prompts_are_the_learned_embedding(
    source: ModelSource, denoiser: Denoiser
) -> None:
    cond = denoiser.condition(prompts(source, 0, 2), torch.tensor([1.0, 1.0]))
    filler = denoiser.conditioners["prompt"].padding_embedding
    assert torch.equal(cond.cross[0, :-1], filler.expand_as(cond.cross[0, :-1]))
    assert torch.equal(cond.cross[1, 2:-1], filler.expand_as(cond.cross[1, 2:-1]))


def test_another_prompt_in_the_batch_changes_nothing(
    source: ModelSource, denoiser: Denoiser
) -> None:
    text, seconds = prompts(source, 3, 9), torch.tensor([2.0, 3.0])
    both = denoiser.condition(text, seconds)
    alone = denoiser.condition(text[:1], seconds[:1])
    assert_close(both.cross[:1], alone.cross)


def test_durations_beyond_the_range_count_as_its_end(
    source: ModelSource, denoiser: Denoiser
) -> None:
    high = source.config.seconds_range[1]
    text = prompts(source, 1, 1)
    cond = denoiser.condition(text, torch.tensor([high, high + 100]))
    assert torch.equal(cond.global_cond[0], cond.global_cond[1])


def test_durations_keep_float32_beside_half_weights(source: ModelSource) -> None:
    half = source.load_denoiser(dtype=torch.bfloat16)
    # 300 and 300.5 s are the same number in bfloat16
    cond = half.condition(prompts(source, 1, 1), torch.tensor([300.0, 300.5]))
    assert not torch.equal(cond.global_cond[0], cond.global_cond[1])


def test_dropping_zeroes_the_tokens_of_the_chosen_items(
    source: ModelSource, denoiser: Denoiser
) -> None:
    cond = denoiser.condition(prompts(source, 2, 2), torch.tensor([1.0, 2.0]))
    dropped = cond.dropped(torch.tensor([True, False]))
    assert dropped.cross[0].count_nonzero() == 0
    assert torch.equal(dropped.cross[1], cond.cross[1])
    assert torch.equal(dropped.global_cond, cond.global_cond)
    assert cond.unconditional().cross.count_nonzero() == 0


def test_a_negative_prompt_has_zeros_where_it_is_padded(
    source: ModelSource, denoiser: Denoiser
) -> None:
    cond = denoiser.condition(prompts(source, 2), torch.tensor([1.0]))
    negative = cond.negative()
    assert torch.equal(negative.cross[:, :2], cond.cross[:, :2])
    assert negative.cross[:, 2:-1].count_nonzero() == 0
    assert torch.equal(negative.cross[:, -1], cond.cross[:, -1])


def test_two_conditionings_become_one_batch(source: ModelSource, denoiser: Denoiser) -> None:
    cond = denoiser.condition(prompts(source, 2), torch.tensor([1.0]))
    both = cond + cond.unconditional()
    assert torch.equal(both.cross[:1], cond.cross)
    assert both.mask.shape[0] == both.global_cond.shape[0] == 2


def test_without_given_audio_everything_is_made(source: ModelSource, denoiser: Denoiser) -> None:
    cond = denoiser.condition(prompts(source, 2), torch.tensor([1.0]))
    x = torch.randn(1, source.config.latent_channels, 6)
    t = torch.tensor([0.5])
    with torch.no_grad():
        plain = denoiser.velocity(x, t, cond)
        zeros = denoiser.velocity(x, t, cond, keep=torch.zeros(1, 6), known=torch.zeros_like(x))
        given = denoiser.velocity(x, t, cond, keep=torch.ones(1, 6), known=x)
    assert torch.equal(plain, zeros)
    assert (plain - given).abs().max() > 1e-3


def test_as_many_durations_as_prompts_are_wanted(source: ModelSource, denoiser: Denoiser) -> None:
    with pytest.raises(ValueError, match="2 prompts but 1 durations"):
        denoiser.condition(prompts(source, 1, 1), torch.tensor([1.0]))


def test_embeddings_of_another_shape_are_refused(source: ModelSource, denoiser: Denoiser) -> None:
    limit, width = source.config.max_prompt_tokens, source.config.cond_dim
    for shape in ((limit + 1, width), (2, width + 1)):
        with pytest.raises(ValueError, match=rf"at most {limit}, {width}\), got \({shape[0]}"):
            denoiser.condition([torch.zeros(shape)], torch.tensor([1.0]))


def test_padding_modes(source: ModelSource) -> None:
    assert source.config.prompt is not None
    zero = dataclasses.replace(source.config.prompt, padding_mode="zero")
    tokens, _ = PromptConditioner(zero, 4)([torch.ones(1, 4)], torch.device("cpu"))
    assert_close(tokens.sum(), torch.tensor(4.0))
    with pytest.raises(ModelError, match="padding_mode 'none' is not supported"):
        PromptConditioner(dataclasses.replace(zero, padding_mode="none"), 4)


def test_an_autoencoder_alone_has_no_denoiser(source: ModelSource) -> None:
    alone = dataclasses.replace(source.config, dit=None, prompt=None)
    with pytest.raises(ModelError, match="an autoencoder alone"):
        Denoiser(alone)
