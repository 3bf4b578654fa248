"""How long the embedded model takes on this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from sa3lora.errors import RunError
from sa3lora.pipeline import SA3Pipeline
from sa3lora.tiny.measure.outcome import Outcome, ceiling

_BATCH, _CLIP_S, _STEPS = 8, 10.0, 50


def measure_speed(pipeline: SA3Pipeline, folder: Path) -> list[Outcome]:
    """Time a batch of clips, after one to warm up, and the whole demo."""
    prompts = ["solo flute, 96 BPM"] * _BATCH
    pipeline(prompts[0], duration_s=1.0, num_inference_steps=1, seed=0)
    start = time.monotonic()
    pipeline(prompts, duration_s=_CLIP_S, num_inference_steps=_STEPS, guidance_scale=7.0, seed=0)
    clip_s = (time.monotonic() - start) / _BATCH
    start = time.monotonic()
    command = [sys.executable, "-m", "sa3lora", "demo", "--out", str(folder / "demo"), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"sa3lora demo failed:\n{done.stderr.strip()}")
    minutes = (time.monotonic() - start) / 60
    return [
        ceiling(
            "seconds a clip", clip_s, 1.0,
            conditions=f"{_CLIP_S:g} s, {_STEPS} steps with guidance, batch of {_BATCH}",
        ),
        ceiling("minutes of sa3lora demo", minutes, 6.0, conditions="the whole job"),
    ]  # fmt: skip
