"""Pretraining of the small CLAP on rendered pieces and freshly worded captions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Generator, Tensor

from sa3lora.models.clap import ClapConfig, TinyClap, config_to_dict
from sa3lora.recipe import OptimSection
from sa3lora.runs import write_bytes_atomic, write_json_atomic
from sa3lora.tiny.arrange import describe
from sa3lora.tiny.captions import Description, write_caption
from sa3lora.tiny.clap_crops import AnalysedPiece, analyse_pool, draw_crops, worsen
from sa3lora.tiny.pieces import pretraining_plan
from sa3lora.tiny.pool import read_pool
from sa3lora.tiny.tokenizer import train_tokenizer
from sa3lora.training.loop import ResumableLoop

logger = logging.getLogger(__name__)

_SAVE_EVERY = 100
_LOG_EVERY = 20


def _optimizer_settings() -> OptimSection:
    return OptimSection(
        lr=1.5e-3, weight_decay=0.05, betas=(0.9, 0.98), schedule="cosine", warmup_steps=60
    )


def train_clap(
    pool: Path, folder: Path, *, max_steps: int, batch: int = 64, seed: int = 3
) -> TinyClap:
    """Fit both towers; goes on from the checkpoints in `folder`.

    Args:
        pool: Folder that `render_pool` wrote; its seeds give the captions.
        folder: For checkpoints and the analysed pieces.
        max_steps: Optimizer steps in all.
        batch: Pieces a step, all negatives of each other.
        seed: Of weights, crops and wordings.
    """
    torch.manual_seed(seed)
    model = TinyClap(ClapConfig(), train_tokenizer())
    pieces = analyse_pool(read_pool(pool), folder / "analysed", tower=model.audio)
    descriptions = [describe(pretraining_plan(piece.seed)) for piece in pieces]
    generator = Generator().manual_seed(seed)
    loop = ResumableLoop(
        dict(model.named_parameters()),
        optim=_optimizer_settings(),
        max_steps=max_steps,
        folder=folder / "checkpoints",
        generators={"data": generator},
        ema_decay=0.995,
    )
    loop.restore()
    model.train()
    running = 0.0
    while loop.step < max_steps:
        loss = _batch_loss(model, pieces, descriptions, batch=batch, generator=generator)
        torch.autograd.backward(loss)
        update = loop.update()
        running += float(loss.detach())
        if update.step % _LOG_EVERY == 0:
            logger.info("step %d loss %.3f lr %.1e", update.step, running / _LOG_EVERY, update.lr)
            running = 0.0
        if update.step % _SAVE_EVERY == 0 or update.step == max_steps:
            loop.save({})
    model.load_state_dict(loop.averages)
    return model.eval()


def _batch_loss(
    model: TinyClap,
    pieces: Sequence[AnalysedPiece],
    descriptions: Sequence[Description],
    *,
    batch: int,
    generator: Generator,
) -> Tensor:
    chosen = torch.randperm(len(pieces), generator=generator)[:batch].tolist()
    crops = draw_crops([pieces[i] for i in chosen], generator=generator)
    mel = worsen(crops.mel, generator=generator)
    audio = model.audio.from_bands(mel, crops.chroma, crops.mask)
    words = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    captions = [write_caption(descriptions[i], words) for i in chosen]
    return model.contrastive_loss(audio, model.text(*model.tokenize(captions)))


def export_clap(model: TinyClap, folder: Path) -> None:
    """Write `config.json`, `tokenizer.json` and the weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    write_json_atomic(folder / "config.json", config_to_dict(model.config))
    write_bytes_atomic(folder / "tokenizer.json", model.tokenizer.to_str(pretty=True).encode())
    write_bytes_atomic(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
