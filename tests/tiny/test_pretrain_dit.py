"""Pretraining of the transformer: a few steps, a kill, the same weights."""

from __future__ import annotations

from pathlib import Path

import torch

from sa3lora.models.config_parse import parse_config
from sa3lora.models.denoiser import Denoiser
from sa3lora.tiny.arrange import describe
from sa3lora.tiny.pieces import pretraining_plan
from sa3lora.tiny.pretrain_dit import (
    EncodedPiece,
    TinyModel,
    _some_high,
    smooth_start,
    train_dit,
)
from sa3lora.tiny.shape import COND_DIM, LATENT_DIM, model_config
from sa3lora.tiny.tokenizer import save_tokenizer, train_tokenizer


def _pieces() -> list[EncodedPiece]:
    generator = torch.Generator().manual_seed(0)
    return [
        EncodedPiece(
            torch.randn(LATENT_DIM, 20 + i, generator=generator).half(),
            2.0,
            describe(pretraining_plan(i)),
        )
        for i in range(4)
    ]


def _train(folder: Path, tokenizer: Path, *, steps: int) -> TinyModel:
    return train_dit(
        _pieces(),
        torch.zeros(LATENT_DIM, 250),
        folder=folder,
        tokenizer_folder=tokenizer,
        max_steps=steps,
        frames_per_batch=80,
    )


def test_the_text_encoder_is_trained_too_and_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    save_tokenizer(train_tokenizer(num_captions=200), tmp_path / "tokenizer")
    torch.manual_seed(1)  # the seed that train_dit sets before it builds the model
    untouched = _train(tmp_path / "none", tmp_path / "tokenizer", steps=1)
    trained = _train(tmp_path / "run", tmp_path / "tokenizer", steps=3)
    moved = [
        not torch.equal(a, b)
        for (_, a), (_, b) in zip(
            untouched.text_model.named_parameters(),
            trained.text_model.named_parameters(),
            strict=True,
        )
    ]
    assert all(moved)
    again = _train(tmp_path / "run", tmp_path / "tokenizer", steps=3)
    for a, b in zip(trained.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_numbers_start_smooth() -> None:
    denoiser = Denoiser(parse_config(model_config()))

    def embedded(seconds: float) -> torch.Tensor:
        text = [torch.zeros(0, COND_DIM)]
        return denoiser.condition(text, torch.tensor([seconds])).global_cond[0]

    def likeness(first: float, second: float) -> float:
        return float(torch.cosine_similarity(embedded(first), embedded(second), dim=0).detach())

    assert likeness(6.0, 6.1) < 0.9  # as released models start: unlike after a tenth of a second
    smooth_start(denoiser)
    assert likeness(6.0, 6.1) > 0.99
    assert likeness(6.0, 6.1) > likeness(6.0, 8.0) > likeness(6.0, 12.0)


def test_some_noise_levels_become_high() -> None:
    generator = torch.Generator().manual_seed(0)
    t = _some_high(torch.full((4000,), 0.2), generator)
    high = t != 0.2
    assert 0.22 < float(high.float().mean()) < 0.28
    assert 0.85 <= float(t[high].min()) < 0.86
    assert 0.99 < float(t[high].max()) <= 1.0
