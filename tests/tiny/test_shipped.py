"""The embedded model as it is shipped."""

from __future__ import annotations

import torch

from sa3lora.models import resolve_model
from sa3lora.models.registry import TINY_FOLDER
from sa3lora.pipeline import SA3Pipeline
from sa3lora.tiny.shape import model_config

MAX_MB = 16.0


def test_it_is_small_and_of_the_documented_shape() -> None:
    size = sum(path.stat().st_size for path in TINY_FOLDER.rglob("*") if path.is_file())
    assert size <= MAX_MB * 1e6
    assert resolve_model("tiny").config.raw == model_config()


def test_its_velocity_knows_the_noise_it_was_given() -> None:
    """An untrained model predicts 0 and explains nothing of the target."""
    pipeline = SA3Pipeline(resolve_model("tiny"))
    out = pipeline("solo flute, 96 BPM", duration_s=6.0, seed=1, num_inference_steps=8)
    latents = out.latents[:, :, :60]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([0.5])
    with torch.no_grad():
        velocity = pipeline.denoiser.velocity(
            0.5 * latents + 0.5 * noise, t, pipeline.condition(["solo flute, 96 BPM"], [6.0])
        )
    target = noise - latents
    assert float((velocity - target).pow(2).mean() / target.pow(2).mean()) < 0.7
