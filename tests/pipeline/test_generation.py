from __future__ import annotations

import dataclasses

import pytest

from sa3lora.models import ModelSource
from sa3lora.pipeline import Guidance
from sa3lora.pipeline.generation import Settings, complete_settings


@pytest.mark.parametrize(
    ("objective", "steps", "scale", "sampler"),
    [("rectified_flow", 50, 7.0, "euler"), ("rf_denoiser", 8, 1.0, "pingpong")],
)
def test_defaults_follow_the_kind_of_model(
    source: ModelSource, objective: str, steps: int, scale: float, sampler: str
) -> None:
    config = dataclasses.replace(source.config, objective=objective)
    full = complete_settings(Settings(guidance=Guidance()), config)
    assert (full.steps, full.guidance.scale, full.sampler) == (steps, scale, sampler)


def test_what_is_given_wins(source: ModelSource) -> None:
    given = Settings(
        guidance=Guidance(scale=2.0, apg_scale=0.5), guidance_scale=3.0, steps=4, sampler="rk4",
        seed=5,
    )  # fmt: skip
    full = complete_settings(given, source.config)
    assert (full.steps, full.guidance.scale, full.sampler, full.seed) == (4, 3.0, "rk4", 5)
    assert full.guidance.apg_scale == 0.5
    without = complete_settings(dataclasses.replace(given, guidance_scale=None), source.config)
    assert without.guidance.scale == 2.0


def test_every_run_without_a_seed_has_its_own(source: ModelSource) -> None:
    seeds = {complete_settings(Settings(Guidance()), source.config).seed for _ in range(4)}
    assert len(seeds) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"sampler": "heun"}, "sampler must be one of .*rk4.*, got 'heun'"),
        ({"init_noise_level": 1.5}, r"must lie in \[0, 1\], got 1.5"),
        ({"init_noise_level": float("nan")}, "got nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be finite"),
        ({"seed": -1}, "seed must lie in"),
        ({"seed": 2**64}, "seed must lie in"),
        ({"guidance": Guidance(interval=(0.8, 0.2))}, "must be in order, got 0.8 to 0.2"),
    ],
)
def test_numbers_out_of_range_are_refused(
    source: ModelSource, changes: dict[str, object], message: str
) -> None:
    settings = dataclasses.replace(Settings(Guidance()), **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        complete_settings(settings, source.config)
