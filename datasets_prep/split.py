"""Dividing sources into train, validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from sa3lora.errors import UsageError

_FEWEST_FOR_VALIDATION = 4
_FEWEST_FOR_TEST = 8


def check_fractions(validation: float, test: float) -> None:
    """Refuse fractions that leave nothing to train on.

    Args:
        validation: Share of sources for validation.
        test: Share of sources for test.

    Raises:
        UsageError: If one is negative or both together reach 1.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):  # NaN fails too
        raise UsageError(
            "--validation and --test must be at least 0 and together below 1, "
            f"got {validation:g} and {test:g}"
        )


def assign_splits(
    audio_hashes: Mapping[str, str], *, validation: float, test: float
) -> dict[str, str]:
    """Give every source a split by what it sounds like.

    Sources with the same decoded audio count as one and go to one side. The order of hashes
    decides, so names and the order of files do not matter, and a new file moves few others. From
    4 different sources there is at least one for validation, from 8 one for test, unless their
    fraction is 0; fewer than 4 all train.

    Args:
        audio_hashes: Hash of the decoded audio by source.
        validation: Share of sources for validation.
        test: Share of sources for test.

    Returns:
        `train`, `validation` or `test` by source.
    """
    # Hashed again: the order must be unlike that of anything else drawn from the hash.
    groups = sorted(set(audio_hashes.values()), key=_rank)
    total = len(groups)
    num_validation = _share(total, validation, fewest=_FEWEST_FOR_VALIDATION)
    num_test = _share(total, test, fewest=_FEWEST_FOR_TEST)
    num_test = min(num_test, total - num_validation - 1) if total else 0
    split_of = dict.fromkeys(groups, "train")
    split_of |= dict.fromkeys(groups[:num_validation], "validation")
    split_of |= dict.fromkeys(groups[num_validation : num_validation + max(num_test, 0)], "test")
    return {source: split_of[audio] for source, audio in audio_hashes.items()}


def _rank(audio_hash: str) -> str:
    return hashlib.sha256(f"split {audio_hash}".encode()).hexdigest()


def _share(total: int, fraction: float, *, fewest: int) -> int:
    if total < fewest or fraction == 0:
        return 0
    return min(max(int(total * fraction + 0.5), 1), total - 1)
