"""Pretraining of the embedded transformer with its conditioners and its text encoder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sa3lora.latents.batching import LengthBatcher
from sa3lora.models.blocks import encode_audio
from sa3lora.models.config_parse import parse_config
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.same import SameAutoencoder
from sa3lora.models.text import TextEncoder
from sa3lora.models.text_start import new_text_encoder
from sa3lora.recipe import ObjectiveSection, OptimSection
from sa3lora.tiny.arrange import describe
from sa3lora.tiny.captions import Description, write_caption
from sa3lora.tiny.pieces import pretraining_plan
from sa3lora.tiny.pool import PooledPiece
from sa3lora.tiny.shape import COND_DIM, MAX_LATENTS, MAX_PROMPT_TOKENS, RATIO, model_config
from sa3lora.training.loop import ResumableLoop
from sa3lora.training.optimizers import is_hidden_matrix
from sa3lora.training.step import flow_step_loss

logger = logging.getLogger(__name__)


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
        self.text_encoder = text_encoder
        self.text_model: nn.Module = text_encoder.model

    def embed(self, prompts: list[str]) -> list[Tensor]:
        """Embed prompts with gradient."""
        hidden, mask = self.text_encoder.forward(prompts)
        return [h[m] for h, m in zip(hidden, mask, strict=True)]


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
    optim = OptimSection(lr=1.5e-3, betas=(0.9, 0.95), schedule="cosine", warmup_steps=100)
    loop = ResumableLoop(
        parameters, optim=optim, max_steps=max_steps, folder=folder,
        generators={"flow": generator}, ema_decay=0.998, takes_muon=is_hidden_matrix,
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
    result = flow_step_loss(
        model.denoiser,
        latents,
        mask=torch.arange(longest) < lengths[:, None],
        seconds=torch.tensor([p.seconds for p in batch]),
        text=model.embed(prompts),
        objective=ObjectiveSection(silence_s=4.0, coupling="none"),
        model_config=model.config,
        generator=generator,
        silence=silence,
    )
    return result.total


@torch.no_grad()
def silent_latents(autoencoder: SameAutoencoder) -> Tensor:
    """Latents (C, T) of silence as long as the model allows."""
    return encode_audio(autoencoder, torch.zeros(1, 2, MAX_LATENTS * RATIO))[0]
