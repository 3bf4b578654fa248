from __future__ import annotations

import errno
import types
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sa3lora.errors import ModelError
from sa3lora.models.hub import download, free_bytes, is_downloaded, page_of

REPO = "stabilityai/stable-audio-3-medium"
ANSWER: Any = types.SimpleNamespace(headers={}, request=None)
#: httpx or httpx2, as the installed version of the Hub's library has it.
BROKEN_LINE = HfHubHTTPError.__mro__[1]


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (GatedRepoError("403", response=ANSWER), rf"licence accepted: open {page_of(REPO)}"),
        (RepositoryNotFoundError("404", response=ANSWER), "was not found on the Hub"),
        (RevisionNotFoundError("404", response=ANSWER), "has no revision 'v9'"),
        (LocalEntryNotFoundError("no net"), "is not on this machine"),
        (ConnectionError("no net"), "is not on this machine"),
        (BROKEN_LINE("cut off"), "is not on this machine"),
    ],
)
def test_each_hindrance_has_its_next_step(
    monkeypatch: pytest.MonkeyPatch, trouble: Exception, message: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise trouble

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=message):
        download(REPO, ["*"], revision="v9")


def test_offline_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("outgoing traffic has been disabled")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set, so the Hub was not asked"):
        download(REPO, ["*"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    with pytest.raises(ModelError, match="the Hub could not be reached"):
        download(REPO, ["*"])
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(ModelError, match="the Hub could not be reached"):
        download(REPO, ["*"])


def test_a_full_disk_is_not_taken_for_a_missing_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(OSError, match="No space left"):
        download(REPO, ["*"])


def test_a_malformed_id_is_refused() -> None:
    with pytest.raises(ModelError, match="'a b/c' is neither a folder nor a Hub id"):
        download("a b/c", ["*"])


def test_what_was_never_fetched_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    assert not is_downloaded(REPO)


def test_free_space_is_told_of_folders_to_come(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") > 0
