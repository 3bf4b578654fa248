from __future__ import annotations

import pytest

from sa3lora.training.result import licence_of


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (["GPL", "GPL"], "GPL"),
        (["GPL", "CC0-1.0"], "CC0-1.0, GPL"),
        (["GPL", None, ""], "GPL; 2 of 3 clips tell none"),
        ([None], None),
        ([], None),
    ],
)
def test_a_licence_is_never_claimed_for_clips_that_tell_none(
    told: list[str | None], expected: str | None
) -> None:
    assert licence_of(told) == expected
