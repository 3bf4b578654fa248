"""Adapters on a pipeline: strengths, limits, rest, deletion and swapping between generations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sa3lora.errors import AdapterError
from sa3lora.models.source import resolve_model
from sa3lora.pipeline import SA3Pipeline


@pytest.fixture
def pipe(small_model: Path) -> SA3Pipeline:
    return SA3Pipeline(resolve_model(str(small_model)))


@pytest.fixture
def play(pipe: SA3Pipeline) -> Callable[[], Tensor]:
    return lambda: pipe("glass", duration_s=0.2, seed=1, num_inference_steps=4).latents


@pytest.fixture
def lora(small_model: Path) -> Path:
    return small_model / "adapter_lora.safetensors"


def test_resting_and_deleted_adapters_leave_the_base(
    pipe: SA3Pipeline, play: Callable[[], Tensor], small_model: Path, lora: Path
) -> None:
    base = play()
    pipe.load_adapter(lora, adapter_name="one", strength=0.5)
    pipe.load_adapter(small_model / "adapter_bora.safetensors", adapter_name="two")
    both = play()
    pipe.disable_adapters()
    assert torch.equal(play(), base)
    pipe.enable_adapters()
    assert torch.equal(play(), both)
    with pytest.raises(AdapterError, match="no adapter named 'three'; loaded: one, two"):
        pipe.delete_adapters(["one", "three"])
    assert torch.equal(play(), both)
    pipe.delete_adapters(["two", "one"])
    assert torch.equal(play(), base)
    assert pipe.stack.names == []


def test_strengths_of_transformer_and_conditioners_are_apart(
    pipe: SA3Pipeline, play: Callable[[], Tensor], lora: Path
) -> None:
    base = play()
    pipe.load_adapter(lora, adapter_name="a", strength=0.0, conditioner_strength=1.0)
    conditioned = play()
    assert not torch.equal(conditioned, base)
    pipe.set_strength("a", 1.0, conditioner_strength=0.0)
    assert not torch.equal(play(), conditioned)
    pipe.set_strength("a", 0.0)
    assert torch.equal(play(), base)


def test_a_swap_between_generations_is_as_if_loaded_fresh(
    pipe: SA3Pipeline, play: Callable[[], Tensor], small_model: Path, lora: Path
) -> None:
    pipe.load_adapter(lora, adapter_name="a", strength=0.7)
    wanted = play()
    pipe.delete_adapters("a")
    pipe.load_adapter(small_model / "adapter_dora-rows.safetensors", adapter_name="a", strength=0.7)
    assert not torch.equal(play(), wanted)
    assert pipe.load_adapter(lora, adapter_name="a", hotswap=True) == "a"
    assert torch.equal(play(), wanted)


def test_an_interval_acts_at_its_noise_levels_only_and_ends_with_the_sampling(
    pipe: SA3Pipeline, play: Callable[[], Tensor], lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = play()
    pipe.load_adapter(lora, adapter_name="a", conditioner_strength=0.0)
    whole = play()
    site = "model.transformer.project_in.weight"
    acting = pipe.denoiser.get_parameter(site).clone()
    seen: list[tuple[float, bool]] = []
    velocity = pipe.denoiser.velocity

    def watch(x: Tensor, t: Tensor, *rest: object, **more: object) -> Tensor:
        acts = torch.equal(pipe.denoiser.get_parameter(site), acting)
        seen.append((float(t[0]), acts))
        return velocity(x, t, *rest, **more)

    monkeypatch.setattr(pipe.denoiser, "velocity", watch)
    assert torch.equal(play(), whole)
    border = sorted({t for t, _ in seen})[1]  # the last two steps of four
    seen.clear()
    pipe.limit_adapter("a", interval=(0.0, border))
    late = play()
    assert {acts for _, acts in seen} == {True, False}
    assert all(acts == (t <= border) for t, acts in seen)  # the border itself belongs to it
    assert not torch.equal(late, base)
    assert not torch.equal(late, whole)
    assert torch.equal(pipe.denoiser.get_parameter(site), acting)  # all act again afterwards
    pipe.limit_adapter("a")
    assert torch.equal(play(), whole)


def test_skipped_layers_stay_the_base(pipe: SA3Pipeline, lora: Path) -> None:
    site = "model.transformer.layers.0.ff.ff.2.weight"
    base = pipe.denoiser.get_parameter(site).clone()
    pipe.load_adapter(lora, adapter_name="a", skip_layers=["layers.0."])
    assert torch.equal(pipe.denoiser.get_parameter(site), base)
    pipe.limit_adapter("a")
    assert not torch.equal(pipe.denoiser.get_parameter(site), base)


def test_the_official_rule_plays_magnitudes_at_any_strength(small_model: Path) -> None:
    source = resolve_model(str(small_model))
    path = small_model / "adapter_dora-rows.safetensors"
    played = []
    for rule, strength in (("exact", 0.01), ("official", 0.01), ("official", 1.0), ("exact", 1.0)):
        pipe = SA3Pipeline(source, strength_rule=rule)
        pipe.load_adapter(path, strength=strength)
        output = pipe("glass", duration_s=0.2, seed=1, num_inference_steps=2, guidance_scale=1.0)
        played.append(output.latents)
    assert (played[0] - played[1]).norm() > 1e-3 * played[0].norm()
    torch.testing.assert_close(played[2], played[3], rtol=1e-4, atol=1e-4)
