"""Pretraining of the transformer: a few steps, a kill, the same weights."""

from __future__ import annotations

from pathlib import Path

import torch

from sa3lora.tiny.arrange import describe
from sa3lora.tiny.pieces import pretraining_plan
from sa3lora.tiny.pretrain_dit import EncodedPiece, TinyModel, train_dit
from sa3lora.tiny.shape import LATENT_DIM
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
