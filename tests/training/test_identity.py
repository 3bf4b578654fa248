from __future__ import annotations

import pytest

from sa3lora.errors import RunError
from sa3lora.recipe import OptimSection, Recipe, TrainSection, ValidationSection
from sa3lora.training.identity import check_identity, run_identity


def _identity(recipe: Recipe, dataset: str = "d") -> dict[str, object]:
    return run_identity(recipe, dataset=dataset, dit_hash="m")


def test_what_changed_is_named_with_both_values() -> None:
    before = _identity(Recipe())
    now = _identity(Recipe(optim=OptimSection(lr=0.5)), dataset="e")
    with pytest.raises(RunError) as raised:
        check_identity(before, now, name="vinyl")
    assert "optim.lr: was 0.0001, is 0.5" in str(raised.value)
    assert "dataset: was d, is e" in str(raised.value)
    assert "new run with another --name" in str(raised.value)


def test_what_does_not_touch_the_steps_may_change() -> None:
    validation = ValidationSection(every=7, select="last", patience=3, drift=False)
    changed = Recipe(train=TrainSection(max_steps=2000), validation=validation)
    check_identity(_identity(Recipe()), _identity(changed), name="vinyl")


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_that_ends_with_the_run_keeps_its_length(schedule: str) -> None:
    cosine = OptimSection.model_validate({"schedule": schedule})
    longer = Recipe(optim=cosine, train=TrainSection(max_steps=2000))
    with pytest.raises(RunError, match=r"train.max_steps: was 1000, is 2000"):
        check_identity(_identity(Recipe(optim=cosine)), _identity(longer), name="vinyl")
