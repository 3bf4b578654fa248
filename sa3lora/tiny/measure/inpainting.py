"""Whether a region that is made anew fits its surroundings, and the rest survives."""

from __future__ import annotations

import torch
from torch import Tensor

from sa3lora.pipeline import SA3Pipeline
from sa3lora.tiny.measure.outcome import Outcome, ceiling, floor
from sa3lora.tiny.measure.reconstruction import log_mel_distance, log_mels, reconstruct
from sa3lora.tiny.pieces import HELD_OUT_SEED, pretraining_piece
from sa3lora.tiny.shape import RATIO, SAMPLE_RATE

_NUM_PIECES, _PIECE_S = 64, 9.6
_REGION_LATENTS = (40, 60)  # of 100
_NEAR_LATENTS = 16
_AWAY_LATENTS = 4  # the kept part is judged outside of what the region's edges touch


def colour(audio: Tensor) -> Tensor:
    """Mean log-mel spectrum over time of sounds (B, 2, N), (B, 2 * bands)."""
    return log_mels(audio).mean(dim=-1).flatten(1)


def auc_own_against_other(made: Tensor, near: Tensor) -> float:
    """Chance that a region is closer to its own surroundings than to another piece's.

    Args:
        made: Colour of each region, (n, D).
        near: Colour of each region's surroundings, (n, D).
    """
    distance = (made[:, None] - near[None]).abs().mean(dim=2)  # region i, surroundings j
    own = distance.diag()[:, None]
    others = ~torch.eye(len(made), dtype=torch.bool)
    wins = (own < distance).float() + 0.5 * (own == distance).float()
    return float(wins[others].mean())


def measure_inpainting(pipeline: SA3Pipeline) -> list[Outcome]:
    """Make the middle of held-out pieces anew, each with its own caption."""
    start, stop = (edge * RATIO for edge in _REGION_LATENTS)
    pieces = [
        pretraining_piece(HELD_OUT_SEED + 40_000 + i, duration_s=_PIECE_S)
        for i in range(_NUM_PIECES)
    ]
    audio = torch.stack([torch.from_numpy(piece.audio) for piece in pieces])
    made = torch.stack(
        [
            pipeline(
                piece.caption,
                duration_s=_PIECE_S,
                seed=7000 + i,
                inpaint_audio=(audio[i], SAMPLE_RATE),
                inpaint_regions=[(start / SAMPLE_RATE, stop / SAMPLE_RATE)],
            ).audio[0]
            for i, piece in enumerate(pieces)
        ]
    )
    near = _NEAR_LATENTS * RATIO
    around = torch.cat([audio[..., start - near : start], audio[..., stop : stop + near]], dim=-1)
    auc = auc_own_against_other(colour(made[..., start:stop]), colour(around))
    plain = reconstruct(pipeline, audio)
    away = _AWAY_LATENTS * RATIO
    kept = [slice(0, start - away), slice(stop + away, audio.shape[-1])]
    lost, floor_loss = (
        sum(float(log_mel_distance(sound[..., part], audio[..., part]).mean()) for part in kept)
        for sound in (made, plain)
    )
    setting = (
        f"{_NUM_PIECES} held-out pieces of {_PIECE_S:g} s, "
        f"{start / SAMPLE_RATE:.2f} to {stop / SAMPLE_RATE:.2f} s made anew"
    )
    return [
        floor("region against surroundings, AUC", auc, 0.8, conditions=setting),
        ceiling(
            "kept part, log-mel L1 to plain reconstruction's", lost / floor_loss, 1.2,
            conditions=setting,
        ),
    ]  # fmt: skip
