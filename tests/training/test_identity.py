from __future__ import annotations

import pytest

from sa3lora.errors import RunError, UsageError
from sa3lora.recipe import OptimSection, Recipe, TrainSection, ValidationSection
from sa3lora.training.identity import (
    check_changeable,
    check_identity,
    of_the_order,
    run_identity,
)


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


def test_a_change_that_is_allowed_is_told_with_both_values() -> None:
    now = _identity(Recipe(optim=OptimSection(lr=0.5)))
    changes = check_identity(_identity(Recipe()), now, name="vinyl", allow=["optim.lr"])
    assert changes.to_json(step=7) == {
        "step": 7,
        "keys": {"optim.lr": {"was": 0.0001, "is": 0.5}},
    }
    assert not changes.measure


def test_allowing_one_change_does_not_allow_another_and_the_message_says_how_to() -> None:
    now = _identity(Recipe(optim=OptimSection(lr=0.5, max_grad_norm=2.0)), dataset="e")
    with pytest.raises(RunError) as raised:
        check_identity(_identity(Recipe()), now, name="vinyl", allow=["optim.lr"])
    assert "optim.lr" not in str(raised.value)
    assert "--allow-change dataset --allow-change optim.max_grad_norm" in str(raised.value)


def test_another_schedule_may_bring_the_length_of_the_run_with_it() -> None:
    cosine = Recipe(optim=OptimSection(schedule="cosine"))
    changes = check_identity(
        _identity(Recipe()), _identity(cosine), name="vinyl", allow=["optim.schedule"]
    )
    assert set(changes.values) == {"optim.schedule", "train.max_steps"}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("adapter.r", "the trained tensors are those of this adapter"),
        ("adapter.type", "cannot be changed"),
        ("optim.betas", "the saved state of the optimizer"),
        ("base model", "an adapter belongs to its base"),
        ("optim.learning", "no such key. These can be changed: adapter.lora_dropout, data"),
        ("preview.every", "not needed"),
        ("validate.every", "not needed"),
    ],
)
def test_what_cannot_change_is_refused_with_the_reason(key: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_changeable(["optim.lr", key])


def test_data_begin_anew_where_their_order_is_another() -> None:
    assert of_the_order({"optim.lr", "dataset"})
    assert not of_the_order({"optim.lr"})
