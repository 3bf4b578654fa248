"""Rebuild the embedded model: `python -m sa3lora.tiny.pretrain --work DIR [--stage STAGE]`.

Stages: `pool` renders the pieces, `same` trains the autoencoder, `clap` the scorer, `dit` the
transformer with its text encoder, `decoder` goes on with the autoencoder's decoder, whose latents
stay the same, `export` writes the model's folder. Each can be killed and goes on where it was. All
random numbers are seeded, so that equal versions give equal files.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from sa3lora.models.checkpoint import AUTOENCODER_PREFIX, full_key
from sa3lora.models.config_parse import parse_config
from sa3lora.models.registry import TINY_FOLDER
from sa3lora.models.same import SameAutoencoder
from sa3lora.runs import write_bytes_atomic
from sa3lora.tiny.pieces import RHYTHM_SEED
from sa3lora.tiny.pool import PIECES_PER_SHARD, PooledPiece, read_pool, render_pool
from sa3lora.tiny.pretrain_clap import export_clap, train_clap
from sa3lora.tiny.pretrain_dit import TinyModel, encode_pool, silent_latents, train_dit
from sa3lora.tiny.pretrain_same import refine_decoder, standardise, train_same
from sa3lora.tiny.shape import model_config
from sa3lora.tiny.tokenizer import save_tokenizer, train_tokenizer

logger = logging.getLogger(__name__)

STAGES = ("pool", "same", "clap", "dit", "decoder", "export")
SHARDS = 22  # of 250 pieces: about 18 hours of music
RHYTHM_SHARDS = 24  # of solos that mark the beat, for the transformer alone: about 16 hours
SAME_STEPS, DECODER_STEPS, CLAP_STEPS, DIT_STEPS = 9000, 2500, 700, 20400


def load_autoencoder(work: Path, pieces: list[PooledPiece], *, steps: int) -> SameAutoencoder:
    """Return the trained autoencoder, training what is missing."""
    path = work / "same.pt"
    autoencoder = SameAutoencoder(parse_config(model_config()).same)
    if path.is_file():
        autoencoder.load_state_dict(torch.load(path, weights_only=True))
        return autoencoder.eval()
    autoencoder = train_same(pieces, work / "same", max_steps=steps)
    standardise(autoencoder, pieces, batches=60)
    torch.save(autoencoder.state_dict(), path)
    return autoencoder.eval()


def load_refined(work: Path, pieces: list[PooledPiece], start: SameAutoencoder) -> SameAutoencoder:
    """Return the autoencoder with its decoder trained on, training what is missing."""
    path = work / "refined.pt"
    autoencoder = SameAutoencoder(parse_config(model_config()).same)
    if path.is_file():
        autoencoder.load_state_dict(torch.load(path, weights_only=True))
        return autoencoder.eval()
    autoencoder.load_state_dict(start.state_dict())
    refine_decoder(autoencoder, pieces, work / "decoder", max_steps=DECODER_STEPS)
    torch.save(autoencoder.state_dict(), path)
    return autoencoder.eval()


def load_dit(
    work: Path, pieces: list[PooledPiece], autoencoder: SameAutoencoder, *, steps: int
) -> TinyModel:
    """Return the trained transformer, training what is missing."""
    pieces = pieces + read_pool(work / "rhythm")
    encoded = encode_pool(autoencoder, pieces, work / "latents.pt")
    save_tokenizer(train_tokenizer(), work / "tokenizer")
    return train_dit(
        encoded, silent_latents(autoencoder), folder=work / "dit",
        tokenizer_folder=work / "tokenizer", max_steps=steps,
    )  # fmt: skip


def export(model: TinyModel, autoencoder: SameAutoencoder, folder: Path) -> None:
    """Write the model's folder in the official layout, in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {full_key(k): v for k, v in model.denoiser.state_dict().items()}
    tensors |= {AUTOENCODER_PREFIX + k: v for k, v in autoencoder.state_dict().items()}
    halves = {k: _half(k, v) for k, v in sorted(tensors.items())}
    write_bytes_atomic(folder / "model.safetensors", save(halves, metadata={"format": "pt"}))
    config = json.dumps(model_config(), indent=1) + "\n"
    write_bytes_atomic(folder / "model_config.json", config.encode())
    text = folder / "text_encoder"
    save_tokenizer(train_tokenizer(), text)
    model.text_encoder.model.to(torch.bfloat16).save_pretrained(text)
    (text / "model.safetensors").chmod(0o644)  # the library writes it for the owner alone


def _half(name: str, tensor: Tensor) -> Tensor:
    """Round weights to float16; rotary frequencies are angles and stay float32."""
    kept = tensor.detach().float().contiguous()
    return kept if name.endswith("inv_freq") else kept.half()


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and pieces")
    parser.add_argument("--out", type=Path, default=TINY_FOLDER, help="folder of the model")
    parser.add_argument("--stage", choices=STAGES, action="append", help="default: all")
    parser.add_argument("--same-steps", type=int, default=SAME_STEPS)
    parser.add_argument("--dit-steps", type=int, default=DIT_STEPS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stages = args.stage or list(STAGES)
    pool = args.work / "pool"
    if "pool" in stages:
        render_pool(pool, shards=SHARDS)
        first = RHYTHM_SEED // PIECES_PER_SHARD
        render_pool(args.work / "rhythm", shards=RHYTHM_SHARDS, first=first)
    pieces = read_pool(pool)
    if "clap" in stages:
        export_clap(train_clap(pool, args.work / "clap", max_steps=CLAP_STEPS), args.out / "clap")
    if set(stages) & {"same", "dit", "decoder", "export"}:
        autoencoder = load_autoencoder(args.work, pieces, steps=args.same_steps)
    if set(stages) & {"dit", "export"}:
        model = load_dit(args.work, pieces, autoencoder, steps=args.dit_steps)
    if set(stages) & {"decoder", "export"}:
        refined = load_refined(args.work, pieces, autoencoder)
    if "export" in stages:
        export(model, refined, args.out)


if __name__ == "__main__":
    main()
