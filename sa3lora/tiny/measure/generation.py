"""Whether the embedded transformer makes what its prompt says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sa3lora.models.clap import TinyClap
from sa3lora.pipeline import SA3Pipeline
from sa3lora.tiny.measure.clap import solo_prompts, timbre_accuracy
from sa3lora.tiny.measure.outcome import Outcome, ceiling, fact, floor
from sa3lora.tiny.pieces import HELD_OUT_SEED, RHYTHM_BPM, RHYTHM_TIMBRES, make_piece
from sa3lora.tiny.shape import SAMPLE_RATE
from sa3lora.tiny.timbres import PROMPT_TIMBRES

_SEEDS = 16
_CLIP_S = 6.0
_TEMPO_CLIP_S = 10.0
_TEMPO_TOLERANCE = 0.08
_SHUFFLES = 9999
_SILENT_DB = -30.0


def generate_many(
    pipeline: SA3Pipeline, prompts: Sequence[str], *, seconds: float, seed: int, batch: int = 16
) -> tuple[Tensor, Tensor]:
    """Generate one clip a prompt with the model's defaults.

    Returns:
        Clips (n, 2, N), and the same with what was computed after their end, (n, 2, longer).
    """
    clips, longer = [], []
    for start in range(0, len(prompts), batch):
        out = pipeline(list(prompts[start : start + batch]), duration_s=seconds, seed=seed + start)
        clips += out.audio
        longer.append(out.padded)
    return torch.stack(clips), torch.cat(longer)


def tempo_is_right(audio: Tensor, bpm: float) -> bool:
    """Whether librosa's tempo of a sound (2, N) is within 8 % of `bpm`, its double or its half."""
    from librosa.feature import tempo

    mono = audio.mean(dim=0).numpy()
    found = float(np.ravel(tempo(y=mono, sr=SAMPLE_RATE, hop_length=160))[0])
    return any(abs(found / (bpm * f) - 1) <= _TEMPO_TOLERANCE for f in (0.5, 1.0, 2.0))


def shuffle_p_value(similarity: NDArray[np.float64], *, seed: int = 0) -> float:
    """Chance that a random assignment of prompts to clips scores like the right one.

    Args:
        similarity: Score of clip i with the prompt of clip j, (n, n).
        seed: Of the shuffles.
    """
    rng = np.random.default_rng(seed)
    n = len(similarity)
    right = np.trace(similarity)
    better = sum(
        similarity[np.arange(n), rng.permutation(n)].sum() >= right for _ in range(_SHUFFLES)
    )
    return float((1 + better) / (1 + _SHUFFLES))


def level_after_end_db(clips: Tensor, longer: Tensor) -> NDArray[np.float64]:
    """Level of what comes after the end of each clip, in dB of the level within, (n,)."""
    gap = round(0.3 * SAMPLE_RATE)
    inside = clips.pow(2).mean(dim=(1, 2)) + 1e-12
    after = longer[..., clips.shape[-1] + gap :].pow(2).mean(dim=(1, 2)) + 1e-12
    return np.asarray(10 * torch.log10(after / inside))


def measure_generation(pipeline: SA3Pipeline, clap: TinyClap) -> list[Outcome]:
    """Generate solos of twelve timbres, and rhythmic prompts of several tempos."""
    names = [name for name in PROMPT_TIMBRES for _ in range(_SEEDS)]
    prompts = [f"solo {name}" for name in names]
    clips, longer = generate_many(pipeline, prompts, seconds=_CLIP_S, seed=1)
    heard = clap.embed_audio([_window(clip, clap) for clip in clips])
    scores = (heard @ clap.embed_text(solo_prompts()).T).numpy()
    labels = np.repeat(np.arange(len(PROMPT_TIMBRES)), _SEEDS)
    right = float((scores.argmax(axis=1) == labels).mean())
    real = timbre_accuracy(clap, HELD_OUT_SEED + 10_000)
    setting = f"12 solo prompts x {_SEEDS} seeds, {_CLIP_S:g} s, model's defaults"
    after = level_after_end_db(clips, longer)
    return [
        floor("top-1 timbre by CLAP", right, 0.42, conditions=setting),
        floor("the same, share of real pieces'", right / real, 0.6, conditions=setting),
        ceiling(
            "matched against shuffled prompts, p", shuffle_p_value(scores[:, labels]), 0.001,
            conditions=f"{setting}, {_SHUFFLES} shuffles",
        ),
        floor(
            "clips that are silent after their end", float((after <= _SILENT_DB).mean()), 0.9,
            conditions=f"{setting}, {_SILENT_DB:g} dB of the clip's level",
        ),
        *_measure_tempo(pipeline),
    ]  # fmt: skip


def _measure_tempo(pipeline: SA3Pipeline) -> list[Outcome]:
    wanted = [(name, bpm) for name in RHYTHM_TIMBRES for bpm in RHYTHM_BPM]
    prompts = [f"solo {name}, {bpm:.0f} BPM" for name, bpm in wanted]
    clips, _ = generate_many(pipeline, prompts, seconds=_TEMPO_CLIP_S, seed=5000)
    found = [tempo_is_right(clip, bpm) for clip, (_, bpm) in zip(clips, wanted, strict=True)]
    pieces = [
        make_piece(HELD_OUT_SEED + 30_000 + i, duration_s=_TEMPO_CLIP_S, timbre=name, tempo_bpm=bpm)
        for i, (name, bpm) in enumerate(wanted)
    ]
    real = [tempo_is_right(torch.from_numpy(p.audio), p.tempo_bpm) for p in pieces]
    setting = f"{len(wanted)} solo prompts with a tempo, {_TEMPO_CLIP_S:g} s, octaves allowed"
    return [
        floor("tempo within 8 %", float(np.mean(found)), 0.5, conditions=setting),
        fact("the same of real pieces", float(np.mean(real)), conditions=setting),
    ]


def _window(clip: Tensor, clap: TinyClap) -> Tensor:
    return clip.mean(dim=0)[: round(clap.window_s * SAMPLE_RATE)]
