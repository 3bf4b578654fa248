"""Our numbers against those of the official code.

`SA3LORA_GOLDEN` names another folder of cases in the same layout.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parity.case import ROOT, Case, case_folders
from tests.parity.checks import CHECKS

FOLDERS = case_folders()


def test_there_are_cases() -> None:
    assert FOLDERS, f"{ROOT} holds no folder with an io.json"


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_equals_the_official_code(folder: Path, check: str) -> None:
    CHECKS[check](Case(folder))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_every_tensor_is_compared(folder: Path) -> None:
    case = Case(folder)
    for check in CHECKS.values():
        check(case)
    unused = sorted(set(case.keys()) - case.used)
    assert not unused, f"no check used {', '.join(unused)}"


def test_any_tensor_off_by_a_hundredth_is_noticed() -> None:
    folder = FOLDERS[-1]
    used: set[str] = set()
    noticed: set[str] = set()
    for check in CHECKS.values():
        case = Case(folder)
        check(case)
        floats = {key for key in case.used if case[key].is_floating_point()}
        used |= floats
        noticed |= {key for key in floats if _fails(check, Case(folder, changed=key))}
    assert noticed == used, f"times 1.01 goes unnoticed: {sorted(used - noticed)}"


def _fails(check: Callable[[Case], None], case: Case) -> bool:
    try:
        check(case)
    except AssertionError:
        return True
    return False
