from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from sa3lora.adapters.config import AdapterConfig
from sa3lora.models.source import ModelSource
from sa3lora.training.bench import BenchSettings, run_bench
from sa3lora.training.peak import PeakMemory


def _bench(*arguments: str) -> dict[str, Any]:
    """Run in a process of its own, whose memory nothing else has touched."""
    command = [sys.executable, "-m", "sa3lora", "bench", "--device", "cpu", "--quiet", "--json"]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("mode", ["fast", "lean", "auto"])
def test_every_mode_takes_a_step_and_counts_its_products(source: ModelSource, mode: str) -> None:
    settings = BenchSettings(
        num_frames=20, batch=2, adapter=AdapterConfig(r=2), mode=mode, compute=torch.float32,
        rounds=1,
    )  # fmt: skip

    def make(dtype: torch.dtype) -> Any:
        return source.load_denoiser(dtype=dtype)

    told: list[int] = []
    result = run_bench(make, source.config, settings, progress=told.append)
    assert told == [1]
    assert result.num_frames == 40
    assert result.step_flops > 0
    assert result.ratio == pytest.approx(result.step_s / result.forward_s)


def test_a_peak_is_what_was_in_use_at_once() -> None:
    peak = PeakMemory(torch.device("cpu"))
    size = 64 * 2**20

    def fill() -> None:
        torch.ones(size // 4).sum()

    assert peak.of(fill) >= 0.9 * size
    if peak.is_exact:
        assert peak.of(lambda: None) < 0.9 * size


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "lean"])
@pytest.mark.parametrize("model", ["tiny", "small-music-base"])
def test_the_estimate_is_within_20_percent_of_a_step(model: str, mode: str) -> None:
    found = _bench("--model", model, "--mode", mode, "--rounds", "1")
    assert found["estimated_bytes"] == pytest.approx(found["peak_bytes"], rel=0.2)


@pytest.mark.slow
def test_lean_takes_at_most_60_percent_of_the_memory_of_fast() -> None:
    lean, fast = (
        _bench("--model", "small-music-base", "--mode", mode, "--rounds", "1")["peak_bytes"]
        for mode in ("lean", "fast")
    )
    assert lean <= 0.6 * fast
