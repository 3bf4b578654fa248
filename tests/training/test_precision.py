from __future__ import annotations

import pytest
import torch

from sa3lora.errors import RecipeError
from sa3lora.recipe import TrainSection
from sa3lora.training.precision import Precision, choose_precision


@pytest.mark.parametrize(("device", "expected"), [("cuda", torch.bfloat16), ("cpu", torch.float32)])
def test_auto_is_bfloat16_on_cuda_and_float32_elsewhere(device: str, expected: torch.dtype) -> None:
    chosen = choose_precision(TrainSection(), device=device)
    assert (chosen.base, chosen.compute) == (expected, expected)


def test_what_the_recipe_says_goes_before_auto() -> None:
    chosen = choose_precision(TrainSection(base_dtype="float32"), device="cuda")
    assert (chosen.base, chosen.compute) == (torch.float32, torch.bfloat16)


def test_float16_products_are_refused_with_what_to_take() -> None:
    with pytest.raises(RecipeError, match="take bfloat16, float32 or auto"):
        choose_precision(TrainSection(dtype="float16"), device="cuda")
    with pytest.raises(RecipeError, match=r"float16 needs train\.dtype=bfloat16"):
        choose_precision(TrainSection(dtype="float32", base_dtype="float16"), device="cuda")


def test_a_base_of_type_auto_is_stored_in_the_type_of_the_products() -> None:
    for device in ("cpu", "cuda"):
        chosen = choose_precision(TrainSection(dtype="bfloat16"), device=device)
        assert (chosen.base, chosen.compute) == (torch.bfloat16, torch.bfloat16)
    chosen = choose_precision(TrainSection(dtype="float32"), device="cuda")
    assert (chosen.base, chosen.compute) == (torch.float32, torch.float32)


def test_what_is_not_quantised_is_stored_in_the_type_of_the_products() -> None:
    chosen = choose_precision(TrainSection(base_dtype="nf4"), device="cuda")
    assert chosen == Precision(torch.bfloat16, torch.bfloat16, quantised="nf4")
    chosen = choose_precision(TrainSection(base_dtype="int8", dtype="float32"), device="cuda")
    assert chosen == Precision(torch.float32, torch.float32, quantised="int8")
