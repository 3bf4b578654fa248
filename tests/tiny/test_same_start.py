"""The first weights of the embedded autoencoder."""

from __future__ import annotations

import torch

from sa3lora.models.config_parse import parse_config
from sa3lora.models.same import SameAutoencoder
from sa3lora.tiny.pieces import pretraining_piece
from sa3lora.tiny.same_start import start_as_pca
from sa3lora.tiny.shape import RATIO, model_config


def _audio(first_seed: int) -> torch.Tensor:
    pieces = [pretraining_piece(first_seed + i, duration_s=16 * RATIO / 16000) for i in range(6)]
    return torch.stack([torch.from_numpy(p.audio[:, : 16 * RATIO]) for p in pieces])


def _error(autoencoder: SameAutoencoder, audio: torch.Tensor, latents: torch.Tensor) -> float:
    made = autoencoder.decode(latents)
    return float((made - audio).pow(2).mean() / audio.pow(2).mean())


@torch.no_grad()
def test_a_started_autoencoder_reconstructs_better_than_silence_and_uses_its_latents() -> None:
    torch.manual_seed(0)
    autoencoder = SameAutoencoder(parse_config(model_config()).same)
    audio = _audio(0)
    start_as_pca(autoencoder, audio)
    raw = autoencoder.encode(audio)
    latents = (raw - raw.mean(dim=(0, 2), keepdim=True)) / raw.std(dim=(0, 2), keepdim=True)
    right = _error(autoencoder, audio, latents)
    wrong = _error(autoencoder, audio, latents.roll(1, dims=0))
    assert right < 0.95  # silence has 1
    assert wrong > 1.0
