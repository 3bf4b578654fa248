from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sa3lora.errors import EvaluationError
from sa3lora.evaluation.generation import generate_clips, plan_clips, read_clips
from sa3lora.evaluation.result import Settings


def settings(num_clips: int, *, seed: int = 0) -> Settings:
    return Settings(num_clips, 1.5, seed, None, None)


def test_few_prompts_are_used_again_with_other_seeds() -> None:
    plans = plan_clips(["a", "b", "a"], settings(5, seed=10))
    assert [(plan.prompt, plan.seed) for plan in plans] == [
        ("a", 10), ("b", 11), ("a", 12), ("b", 13), ("a", 14),
    ]  # fmt: skip


def test_of_many_prompts_an_even_part_is_taken() -> None:
    plans = plan_clips([str(n) for n in range(10)], settings(4))
    assert [plan.prompt for plan in plans] == ["0", "2", "5", "7"]


def test_no_prompts_say_how_to_give_some() -> None:
    with pytest.raises(EvaluationError, match="--prompts"):
        plan_clips(["", "  "], settings(4))


def test_clips_on_disk_are_exactly_what_was_made(tmp_path: Path, pipeline: Any) -> None:
    plans = plan_clips(["a"], settings(2))
    seen: list[tuple[str, int, int]] = []
    generate_clips(
        pipeline,
        plans,
        folder=tmp_path / "base",
        settings=settings(2),
        progress=lambda *state: seen.append(state),
    )
    read = list(read_clips(plans, tmp_path / "base"))
    again = pipeline(
        "a", duration_s=1.5, num_inference_steps=None, guidance_scale=None, seed=plans[1].seed
    )
    assert read[1].audio.equal(again.audio[0])
    assert seen[-1] == ("generate with base", 2, 2)
