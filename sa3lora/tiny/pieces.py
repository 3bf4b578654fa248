"""Whole pieces with captions, a pure function of their seed.

Pretraining uses seeds below `HELD_OUT_SEED` only; every measurement uses seeds from there on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from sa3lora.audio import write_audio
from sa3lora.errors import UsageError
from sa3lora.tiny.arrange import describe, draw_plan
from sa3lora.tiny.captions import Description, full_caption, write_caption
from sa3lora.tiny.composer import Event, Part, Plan, compose
from sa3lora.tiny.oscillators import Signal
from sa3lora.tiny.render import finish, mix, room
from sa3lora.tiny.shape import RATIO, SAMPLE_RATE
from sa3lora.tiny.styles import STYLES, tonic_name
from sa3lora.tiny.timbres import TIMBRES

HELD_OUT_SEED = 10_000_000
#: Seeds from here to `HELD_OUT_SEED` are solos of instruments that mark the beat.
RHYTHM_SEED = 5_000_000
RHYTHM_TIMBRES = ("drums", "guitar", "marimba", "piano", "bass", "harpsichord")
#: Their tempos, slow to fast: beats of 8, 7, 6, 5, 4.5 and 4 latents, so that each is a pattern
#: of latents that repeats.
RHYTHM_BPM = tuple(60.0 * SAMPLE_RATE / RATIO / beat for beat in (8, 7, 6, 5, 4.5, 4))
MIN_DURATION_S = 1.0
MAX_DURATION_S = 24.0


@dataclass(frozen=True)
class Piece:
    """A piece: sound (2, N) float32, caption, the facts behind it, and its notes."""

    audio: Signal
    caption: str
    tags: dict[str, Any]
    description: Description
    tempo_bpm: float
    timbres: tuple[str, ...]
    parts: tuple[Part, ...]
    events: tuple[Event, ...]
    duration_s: float
    sample_rate: int
    seed: int
    style: str | None


def make_piece(
    seed: int,
    *,
    duration_s: float = 10.0,
    sample_rate: int = 16000,
    style: str | None = None,
    timbre: str | None = None,
    single: bool = False,
    tempo_bpm: float | None = None,
) -> Piece:
    """Compose and render the piece of a seed.

    The piece is exactly `duration_s` long and has died away by then.

    Args:
        seed: Decides everything; the same arguments give the same samples.
        duration_s: From 1 to 24 s.
        sample_rate: Hz; the notes do not depend on it.
        style: One of the left-out `STYLES`; None for the music of pretraining.
        timbre: The only instrument of the piece (implies `single`).
        single: Use one instrument only.
        tempo_bpm: Instead of the tempo that the seed draws; a style has its own.
    """
    _check(duration_s, style=style, timbre=timbre, single=single)
    rng = np.random.default_rng([seed, 0])
    if style is not None:
        return _styled(seed, style, rng, duration_s=duration_s, sample_rate=sample_rate)
    plan = draw_plan(rng, timbre=timbre, single=single, tempo_bpm=tempo_bpm)
    events = compose(plan, rng, duration_s=duration_s)
    audio = mix(events, plan.parts, duration_s=duration_s, sample_rate=sample_rate)
    audio = room(audio, plan.reverb, sample_rate=sample_rate)
    description = describe(plan)
    caption = write_caption(description, np.random.default_rng([seed, 1]))
    return _piece(description, caption, audio, plan.parts, events, duration_s, sample_rate, seed)


def _piece(
    description: Description,
    caption: str,
    audio: Signal,
    parts: tuple[Part, ...],
    events: list[Event],
    duration_s: float,
    sample_rate: int,
    seed: int,
    style: str | None = None,
) -> Piece:
    peak_db = float(np.random.default_rng([seed, 2]).uniform(-3.0, -1.0))
    tags = {
        "genre": description.genre,
        "instruments": list(description.instruments),
        "mood": description.mood,
        "key": description.key,
        "bpm": description.tempo_bpm,
        "density": description.density,
        "texture": description.texture,
        "reverb": description.reverb,
    }
    return Piece(
        audio=finish(audio, peak_db=peak_db, sample_rate=sample_rate),
        caption=caption,
        tags={name: value for name, value in tags.items() if value},
        description=description,
        tempo_bpm=description.tempo_bpm,
        timbres=description.instruments,
        parts=parts,
        events=tuple(events),
        duration_s=duration_s,
        sample_rate=sample_rate,
        seed=seed,
        style=style,
    )


def _check(duration_s: float, *, style: str | None, timbre: str | None, single: bool) -> None:
    if not MIN_DURATION_S <= duration_s <= MAX_DURATION_S:
        raise UsageError(
            f"duration_s must be {MIN_DURATION_S:g} to {MAX_DURATION_S:g}, got {duration_s:g}"
        )
    if style is not None and style not in STYLES:
        raise UsageError(f"unknown style {style!r}; there are: {', '.join(STYLES)}")
    if timbre is not None and timbre not in TIMBRES:
        raise UsageError(f"unknown timbre {timbre!r}; there are: {', '.join(TIMBRES)}")
    if style is not None and (timbre is not None or single):
        raise UsageError("a style brings its own instruments: leave out timbre and single")


def _styled(
    seed: int, style: str, rng: np.random.Generator, *, duration_s: float, sample_rate: int
) -> Piece:
    made = STYLES[style]
    score = made.write(rng, duration_s)
    audio = mix(score.events, score.parts, duration_s=duration_s, sample_rate=sample_rate)
    description = Description(
        instruments=made.instruments,
        tempo_bpm=score.tempo_bpm,
        genre=made.name,
        mood=made.words[0],
        key=tonic_name(score),
        density=made.words[1],
    )
    audio = score.process(audio, sample_rate)
    caption = full_caption(description)
    return _piece(
        description, caption, audio, score.parts, score.events, duration_s, sample_rate, seed, style
    )


def pretraining_piece(
    seed: int, *, sample_rate: int = 16000, duration_s: float | None = None
) -> Piece:
    """Draw a piece from the pretraining distribution.

    Pieces last 2 to 24 s and half of them are solos; of `RHYTHM_SEED` all are, of up to 16 s.
    """
    rng = np.random.default_rng([seed, 3])
    single = bool(rng.random() < 0.5)
    longest = 16.0 if RHYTHM_SEED <= seed < HELD_OUT_SEED else MAX_DURATION_S
    length = round(float(rng.triangular(2.0, 10.0, longest)), 2)
    return make_piece(
        seed,
        duration_s=duration_s if duration_s is not None else length,
        sample_rate=sample_rate,
        single=single,
        **_rhythm(seed),
    )


class _Rhythm(TypedDict):
    timbre: str | None
    tempo_bpm: float | None


def _rhythm(seed: int) -> _Rhythm:
    if not RHYTHM_SEED <= seed < HELD_OUT_SEED:
        return {"timbre": None, "tempo_bpm": None}
    tempo, timbre = divmod(seed % (len(RHYTHM_BPM) * len(RHYTHM_TIMBRES)), len(RHYTHM_TIMBRES))
    return {"timbre": RHYTHM_TIMBRES[timbre], "tempo_bpm": RHYTHM_BPM[tempo]}


def write_style_folder(
    style: str,
    out_dir: Path,
    *,
    n: int,
    duration_s: float = 12.0,
    seed: int = HELD_OUT_SEED,
    sample_rate: int = 16000,
) -> list[Path]:
    """Write `n` WAV tracks of a left-out style with `.txt` captions beside them."""
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(n):
        piece = make_piece(
            seed + index, duration_s=duration_s, sample_rate=sample_rate, style=style
        )
        path = out_dir / f"{style.replace(' ', '_')}_{index:03d}.wav"
        write_audio(path, torch.from_numpy(piece.audio), sample_rate)
        path.with_suffix(".txt").write_text(piece.caption + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def pretraining_plan(seed: int) -> Plan:
    """Give the plan of `pretraining_piece` without composing it, a thousand times faster."""
    single = bool(np.random.default_rng([seed, 3]).random() < 0.5)
    return draw_plan(np.random.default_rng([seed, 0]), single=single, **_rhythm(seed))


def pretraining_caption(seed: int) -> str:
    """Give the caption of `pretraining_piece` without its sound."""
    return write_caption(describe(pretraining_plan(seed)), np.random.default_rng([seed, 1]))
