from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.inject import adapter_parameters
from sa3lora.errors import RecipeError
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.quantised import QuantisedLinear
from sa3lora.models.source import ModelSource
from sa3lora.training.bench import BenchSettings, run_bench
from sa3lora.training.peak import PeakMemory
from sa3lora.training.precision import Precision


def _bench(*arguments: str) -> dict[str, Any]:
    """Run in a process of its own, whose memory nothing else has touched."""
    command = [sys.executable, "-m", "sa3lora", "bench", "--device", "cpu", "--quiet", "--json"]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def _maker(source: ModelSource) -> Callable[[Precision], Denoiser]:
    return lambda held: source.load_denoiser(dtype=held.base, quantised=held.quantised)


def _settings(adapter_type: str = "lora", **changes: Any) -> BenchSettings:
    settings = BenchSettings(
        num_frames=12, batch=1, adapter=AdapterConfig(type=adapter_type, r=2), mode="fast",
        compute=torch.float32, rounds=1,
    )  # fmt: skip
    return replace(settings, **changes)


@pytest.mark.parametrize("mode", ["fast", "lean", "auto"])
def test_every_mode_takes_a_step_and_counts_its_products(source: ModelSource, mode: str) -> None:
    settings = _settings(num_frames=20, batch=2, mode=mode)
    told: list[int] = []
    result = run_bench(_maker(source), source.config, settings, progress=told.append)
    assert told == [1]
    assert result.num_frames == 40
    assert result.step_flops > 0
    assert result.ratio == pytest.approx(result.step_s / result.forward_s)


@pytest.mark.parametrize("base", ["auto", "bfloat16", "int8", "nf4"])
def test_a_step_meets_the_base_that_was_asked_for(source: ModelSource, base: str) -> None:
    made: dict[str, Denoiser] = {}

    def make(held: Precision) -> Denoiser:
        denoiser = _maker(source)(held)
        made[str(held)] = denoiser
        return denoiser

    settings = _settings(base=base)
    result = run_bench(make, source.config, settings)
    plain = str(Precision(torch.float32, torch.float32))
    assert set(made) == {str(settings.precision), plain}, "the forward pass is float32 always"
    trained = {id(p) for _, p in adapter_parameters(made[str(settings.precision)])}
    tensors = [p for p in made[str(settings.precision)].parameters() if id(p) not in trained]
    for module in made[str(settings.precision)].modules():
        if isinstance(module, QuantisedLinear):
            tensors += module.quantised.tensors
    assert result.base_bytes == sum(tensor.numel() * tensor.itemsize for tensor in tensors)


@pytest.mark.parametrize("name", ["adamw8bit", "prodigy", "muon"])
def test_every_optimizer_takes_the_step(source: ModelSource, name: str) -> None:
    result = run_bench(_maker(source), source.config, _settings(optimizer=name))
    assert result.step_flops > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (_settings("dora-rows", base="int8"), "int8, but dora-rows is trained against"),
        (_settings("lokr", base="nf4"), "nf4, but lokr makes a full matrix"),
        (_settings(base="nf4", compile=True), "train.compile: a base in nf4 is not compiled"),
    ],
)
def test_what_no_run_could_train_is_refused_before_anything_is_made(
    source: ModelSource, settings: BenchSettings, message: str
) -> None:
    def make(_: Precision) -> Denoiser:
        pytest.fail("nothing is made")

    with pytest.raises(RecipeError, match=message):
        run_bench(make, source.config, settings)


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


def _on_gpu(*arguments: str) -> dict[str, Any]:
    shape = ("--model", "medium-base", "--dtype", "bfloat16", "--rounds", "3")
    return _bench(*shape, *arguments, "--device", "cuda")


@pytest.mark.gpu
def test_medium_reaches_45_percent_of_the_products_of_an_h200() -> None:
    if "H200" not in torch.cuda.get_device_name():
        pytest.skip("the share is promised for an H200")
    assert _on_gpu("--frames", "512", "--batch", "8")["efficiency"] >= 0.45


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("frames", "base", "limit"),
    [(4092, "bfloat16", 12e9), (1292, "nf4", 8e9)],  # clips of 380 and 120 s
)
def test_medium_trains_on_small_cards(frames: int, base: str, limit: float) -> None:
    found = _on_gpu("--frames", str(frames), "--base", base, "--mode", "lean")
    assert found["base_bytes"] + found["peak_bytes"] <= limit
