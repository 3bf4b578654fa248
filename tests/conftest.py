"""What every test needs before anything is imported."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# Without these a missing file sends transformers and datasets to the network, where they retry for
# minutes.
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[_name] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# Workers side by side that start a thread a core each only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402


@pytest.fixture(scope="session")
def small_model() -> Path:
    """Folder of a random model in the official layout: 8 kHz, 12 latent channels, ratio 32."""
    default = Path(__file__).parent / "data" / "golden"
    return Path(os.environ.get("SA3LORA_GOLDEN", default)) / "small"


@pytest.fixture(scope="session")
def make_latents(small_model: Path) -> Callable[..., Path]:
    """Write a latents dataset of smooth random clips for `small_model`, several to a track."""

    def make(
        root: Path,
        *,
        tracks: int = 4,
        clips_per_track: int = 2,
        held_out: int = 1,
        frames: tuple[int, int] = (12, 30),
        ae_hash: str | None = None,
        broken_clip: str | None = None,
    ) -> Path:
        from sa3lora.latents.manifest import collect_rows, summarise, write_manifest, write_silence
        from sa3lora.latents.schema import ClipRow, DatasetMeta
        from sa3lora.latents.shards import write_shard
        from sa3lora.models.source import resolve_model

        source = resolve_model(str(small_model))
        rng = np.random.default_rng(7)
        rows, latents = [], []
        for track in range(tracks):
            for clip in range(clips_per_track):
                count = int(rng.integers(frames[0], frames[1], endpoint=True))
                steps = rng.standard_normal((count, 12)).cumsum(axis=0) / 3
                if f"{track:02d}{clip:02d}" == broken_clip:
                    steps[0] = np.nan
                latents.append(steps.astype(np.float16))
                rows.append(
                    ClipRow(
                        clip_id=f"{track:02d}{clip:02d}",
                        num_frames=count,
                        caption=f"Genre: test {track}",
                        caption_source="template",
                        tags={},
                        duration_s=count * 32 / 8000,
                        start_s=clip * 1.0,
                        source=f"track{track}.wav",
                        source_sha256=f"{track:064d}",
                        source_duration_s=10.0,
                        split="validation" if track >= tracks - held_out else "train",
                    )
                )
        root.mkdir(parents=True)
        write_shard(root, rank=0, rows=rows, latents=latents)
        write_silence(root, torch.full((12, 5), 0.25))
        found, fingerprint = collect_rows(root, channels=12)
        meta = DatasetMeta(
            model=str(small_model),
            ae_hash=ae_hash or source.ae_hash,
            sample_rate=8000,
            ratio=32,
            channels=12,
            fingerprint=fingerprint,
            **summarise(found),
        )
        write_manifest(root, meta)
        return root

    return make
