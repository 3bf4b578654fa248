"""Pretraining of the embedded transformer with its conditioners and its text encoder."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sa3lora.flow.features import expo_frequencies
from sa3lora.latents.batching import LengthBatcher
from sa3lora.models.blocks import encode_audio
from sa3lora.models.config_parse import parse_config
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.same import SameAutoencoder
from sa3lora.models.text import TextEncoder
from sa3lora.models.text_start import new_text_encoder
from sa3lora.probe.draws import draw_step, loss_of_draws
from sa3lora.recipe import ObjectiveSection, OptimSection
from sa3lora.tiny.arrange import describe
from sa3lora.tiny.captions import Description, write_caption
from sa3lora.tiny.pieces import pretraining_plan
from sa3lora.tiny.pool import PooledPiece
from sa3lora.tiny.shape import COND_DIM, MAX_LATENTS, MAX_PROMPT_TOKENS, RATIO, model_config
from sa3lora.training.loop import ResumableLoop
from sa3lora.training.step import extend_by_silence

logger = logging.getLogger(__name__)

# Length and tempo are decided at high noise levels, of which the released law draws few: a quarter
# of the clips get a level from here to 1 instead. Long silences keep the end of what is computed
# from telling where the music ends, so that only `seconds_total` does.
_HIGH_SHARE, _HIGH_FROM = 0.25, 0.85
_SILENCE_S = 6.0
_SMOOTH_BELOW = 4.0  # cycles over the range of a number
_LEARNING_RATE = 2.5e-3


@dataclass(frozen=True)
class EncodedPiece:
    """Latents (C, T) float16 of a piece, and what its captions may say."""

    latents: Tensor
    seconds: float
    description: Description


@torch.no_grad()
def encode_pool(
    autoencoder: SameAutoencoder, pieces: list[PooledPiece], cache: Path
) -> list[EncodedPiece]:
    """Encode every piece once; later calls read `cache`."""
    if cache.is_file():
        latents = torch.load(cache, weights_only=True)
    else:
        latents = []
        for piece in pieces:
            audio = torch.from_numpy(np.array(piece.audio)).float()[None] / 32767
            latents.append(encode_audio(autoencoder, audio)[0].half())
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(latents, cache.with_suffix(".partial"))
        cache.with_suffix(".partial").replace(cache)
    return [
        EncodedPiece(z, piece.seconds, describe(pretraining_plan(piece.seed)))
        for z, piece in zip(latents, pieces, strict=True)
    ]


class TinyModel(nn.Module):
    """Everything that this stage trains."""

    def __init__(self, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.config = parse_config(model_config())
        self.denoiser = Denoiser(self.config)
        smooth_start(self.denoiser)
        self.text_encoder = text_encoder
        self.text_model: nn.Module = text_encoder.model

    def embed(self, prompts: list[str]) -> list[Tensor]:
        """Embed prompts with gradient."""
        hidden, mask = self.text_encoder.forward(prompts)
        return [h[m] for h, m in zip(hidden, mask, strict=True)]


@torch.no_grad()
def smooth_start(denoiser: Denoiser) -> None:
    """Start with embeddings of duration and noise level that change slowly with them.

    The Fourier features of a number go up to thousands of cycles. Read with equal weights, two
    durations 0.1 s apart have nothing in common, and a few thousand pieces teach no law of them.
    """
    sites = ("conditioners.seconds_total.embedder.embedding.1", "model.to_timestep_embed.0")
    for layer in map(denoiser.get_submodule, sites):
        assert isinstance(layer, nn.Linear)
        frequencies = expo_frequencies(layer.in_features)
        weight = 2.0 * (_SMOOTH_BELOW / frequencies).clamp(max=1.0)
        layer.weight.mul_(torch.cat([weight, weight]))


def train_dit(
    pieces: list[EncodedPiece],
    silence: Tensor,
    *,
    folder: Path,
    tokenizer_folder: Path,
    max_steps: int,
    frames_per_batch: int = 1536,
    seed: int = 1,
) -> TinyModel:
    """Fit the transformer with the released objective; resumes from the checkpoints in `folder`."""
    torch.manual_seed(seed)
    text_encoder = new_text_encoder(
        tokenizer_folder, width=COND_DIM, layers=2, max_length=MAX_PROMPT_TOKENS
    )
    model = TinyModel(text_encoder)
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    optim = OptimSection(
        name="muon", lr=_LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.95), schedule="cosine",
        warmup_steps=100,
    )  # fmt: skip
    loop = ResumableLoop(
        parameters, optim=optim, max_steps=max_steps, folder=folder,
        generators={"flow": generator}, ema_decay=0.998, takes_muon=_is_multiplied,
    )  # fmt: skip
    batcher = LengthBatcher(
        [p.latents.shape[1] for p in pieces], frames_per_batch=frames_per_batch, seed=seed,
        extra_frames=16,
    )  # fmt: skip
    info = loop.restore()
    if info is not None:
        batcher.load_state_dict(info["sampler"])
    recent: list[float] = []
    while loop.step < max_steps:
        plan = next(batcher)
        batch = [pieces[crop.index] for crop in plan.crops]
        loss = _loss(model, batch, silence, step=loop.step, generator=generator)
        torch.autograd.backward(loss)
        update = loop.update()
        recent.append(float(loss.detach()))
        if update.step % 50 == 0:
            logger.info("dit step %d loss %.4f lr %.2e", update.step, np.mean(recent), update.lr)
            recent.clear()
        if update.step % 200 == 0 or update.step == max_steps:
            loop.save({"sampler": plan.state})
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(loop.averages[name])
    return model


def _is_multiplied(name: str, parameter: nn.Parameter) -> bool:
    # of most rows of a table of words, or of features of a number, a step sees next to nothing
    return "embed_tokens" not in name and "embedder.embedding" not in name


def _loss(
    model: TinyModel,
    batch: list[EncodedPiece],
    silence: Tensor,
    *,
    step: int,
    generator: torch.Generator,
) -> Tensor:
    lengths = torch.tensor([p.latents.shape[1] for p in batch])
    longest = int(lengths.max())
    latents = torch.stack(
        [nn.functional.pad(p.latents.float(), (0, longest - p.latents.shape[1])) for p in batch]
    )
    rng = np.random.default_rng([step, 5])
    prompts = [write_caption(p.description, rng) for p in batch]
    latents, mask = extend_by_silence(
        latents,
        torch.arange(longest) < lengths[:, None],
        silence=silence,
        mean_s=_SILENCE_S,
        model_config=model.config,
        generator=generator,
    )
    seconds = torch.tensor([p.seconds for p in batch])
    draws = draw_step(
        latents,
        mask,
        seconds=seconds,
        objective=ObjectiveSection(coupling="none"),
        model_config=model.config,
        generator=generator,
    )
    draws = replace(draws, t=_some_high(draws.t, generator))
    with torch.autocast("cpu", torch.bfloat16):
        result = loss_of_draws(
            model.denoiser,
            latents,
            mask=mask,
            seconds=seconds,
            text=model.embed(prompts),
            draws=draws,
            context_weight=1.0,
            normalisation="none",
        )
    return result.total


def _some_high(t: Tensor, generator: torch.Generator) -> Tensor:
    """Replace some noise levels (B,) by high ones."""
    high = torch.rand(len(t), generator=generator) < _HIGH_SHARE
    levels = _HIGH_FROM + (1.0 - _HIGH_FROM) * torch.rand(len(t), generator=generator)
    return torch.where(high, levels, t)


@torch.no_grad()
def silent_latents(autoencoder: SameAutoencoder) -> Tensor:
    """Latents (C, T) of silence as long as the model allows."""
    return encode_audio(autoencoder, torch.zeros(1, 2, MAX_LATENTS * RATIO))[0]
