"""The pretraining distribution: genres, arrangements, plans, and what a plan says in words."""

from __future__ import annotations

import numpy as np

from sa3lora.tiny.captions import Description, mood_of
from sa3lora.tiny.composer import DENSITIES, Part, Plan
from sa3lora.tiny.theory import COMMON_BPM, MAX_BPM, MIN_BPM, SCALES, Key
from sa3lora.tiny.timbres import TIMBRES

# Genre: lead instruments, accompanying instruments, chance of drums.
_GENRES: dict[str, tuple[tuple[str, ...], tuple[str, ...], float]] = {
    "folk": (("flute", "violin", "accordion", "guitar"), ("guitar", "accordion"), 0.1),
    "classical": (("violin", "flute", "piano"), ("harpsichord", "piano", "choir"), 0.0),
    "jazz": (("trumpet", "piano", "electric piano"), ("electric piano", "piano", "guitar"), 0.7),
    "electronic": (("square lead", "bells"), ("synth pad", "organ"), 0.8),
    "ambient": (("bells", "flute", "choir"), ("synth pad", "choir"), 0.0),
    "rock": (("guitar", "organ", "square lead"), ("guitar", "organ"), 0.9),
    "world": (("marimba", "flute", "bells"), ("marimba", "guitar"), 0.6),
    "church": (("trumpet", "choir", "organ"), ("organ", "choir"), 0.0),
}
_WITH_BASS = {"jazz": 0.8, "electronic": 0.8, "rock": 0.9, "folk": 0.5, "world": 0.4}


def draw_plan(
    rng: np.random.Generator,
    *,
    timbre: str | None = None,
    single: bool = False,
    tempo_bpm: float | None = None,
) -> Plan:
    """Draw a plan of the pretraining distribution; `timbre` asks for a solo of that one."""
    tempo = float(rng.choice(COMMON_BPM))
    if rng.random() < 0.3:
        tempo = float(rng.integers(MIN_BPM, MAX_BPM + 1))
    tempo = tempo if tempo_bpm is None else tempo_bpm
    key = Key(int(rng.integers(12)), str(rng.choice(list(SCALES))))
    density = DENSITIES[int(rng.choice(3, p=[0.25, 0.4, 0.35]))]
    if single or timbre is not None:
        name = timbre or str(rng.choice(list(TIMBRES)))
        roles = TIMBRES[name].roles
        role = roles[int(rng.integers(len(roles)))]
        parts = [Part(name, role, pan=float(rng.uniform(-0.3, 0.3)))]
        genre = ""  # a solo belongs to no genre that one could hear
    else:
        genre = str(rng.choice(list(_GENRES)))
        parts = _arrange(genre, rng)
    swing = float(rng.choice([0.12, 0.16])) if genre == "jazz" else 0.0
    chances = [0.3, 0.3, 0.4] if genre in ("ambient", "church") else [0.7, 0.22, 0.08]
    reverb = str(rng.choice(["dry", "room", "hall"], p=chances))
    return Plan(key, tempo, density, tuple(parts), genre, swing, reverb)


def _arrange(genre: str, rng: np.random.Generator) -> list[Part]:
    leads, backing, drum_chance = _GENRES[genre]
    lead = str(rng.choice(leads))
    roles = [role for role in TIMBRES[lead].roles if role != "chords"]
    pan = float(rng.uniform(0.1, 0.35) * rng.choice([-1, 1]))
    parts = [Part(lead, str(rng.choice(roles)), pan, float(rng.uniform(0.9, 1.2)))]
    others = [name for name in backing if name != lead]
    if rng.random() < 0.8:
        second = str(rng.choice(others))
        roles = [role for role in TIMBRES[second].roles if role != "melody"]
        parts.append(Part(second, str(rng.choice(roles)), -pan, float(rng.uniform(0.7, 1.0))))
    if rng.random() < _WITH_BASS.get(genre, 0.1):
        parts.append(Part("bass", "bass"))
    if len(parts) == 1 or (len(parts) < 3 and rng.random() < drum_chance):
        parts.append(Part("drums", "drums") if drum_chance else Part("bass", "bass"))
    return parts[:3]


def describe(plan: Plan) -> Description:
    """Say what is true of every piece that follows the plan."""
    instruments = tuple(dict.fromkeys(part.timbre for part in plan.parts))
    unpitched = instruments == ("drums",)
    return Description(
        instruments=instruments,
        tempo_bpm=plan.tempo_bpm,
        genre=plan.genre,
        mood="" if unpitched else mood_of(plan.key.mode, plan.tempo_bpm, density=plan.density),
        key="" if unpitched else plan.key.name,
        density=plan.density,
        texture=plan.parts[0].role if len(plan.parts) == 1 and not unpitched else "",
        reverb={"dry": "dry", "room": "", "hall": "reverb"}[plan.reverb],
    )
