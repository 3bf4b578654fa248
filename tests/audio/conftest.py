from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

WriteMp3 = Callable[..., Path]


@pytest.fixture
def write_mp3() -> WriteMp3:
    """Write 20 s of noise as an MP3; without an index by leaving out its first half."""

    def write(path: Path, *, indexed: bool, constant: bool, rate: int = 16000) -> Path:
        mode: dict[str, Any] = (
            {"bitrate_mode": "CONSTANT", "compression_level": 0.5} if constant else {}
        )
        with soundfile.SoundFile(
            path, "w", rate, 1, format="MP3", subtype="MPEG_LAYER_III", **mode
        ) as file:
            file.write(0.1 * np.random.default_rng(0).standard_normal((20 * rate, 1)))
        if not indexed:
            content = path.read_bytes()
            path.write_bytes(content[content.index(content[:2], len(content) // 2) :])
        return path

    return write
