"""Files of the Hugging Face Hub: fetching them, and knowing beforehand what is there already."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from sa3lora.errors import ModelError

#: Without these a folder is no model.
MODEL_FILES = ["model_config.json", "model.safetensors"]
# A full disk is no missing network: these keep their own message.
_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG)
# what the Hub's library takes for yes; HF_HUB_OFFLINE=0 asks the Hub
_YES = ("1", "ON", "YES", "TRUE")


def page_of(repo_id: str) -> str:
    """Address of a repository, where its licence is accepted."""
    return f"https://huggingface.co/{repo_id}"


def download(repo_id: str, patterns: list[str], *, revision: str | None = None) -> Path:
    """Fetch files of a Hub repository into the Hub's own cache and return its folder.

    Raises:
        ModelError: With the next step, when the licence, token, network or name is in the way.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # what both httpx and httpx2 call HTTPError; the Hub's library uses one or the other
    http_error: type[BaseException] = HfHubHTTPError.__mro__[1]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns, revision=revision))
    except HFValidationError as error:
        raise ModelError(f"{repo_id!r} is neither a folder nor a Hub id: {error}") from error
    except GatedRepoError as error:
        raise ModelError(
            f"{repo_id} needs its licence accepted: open {page_of(repo_id)}, accept, then run "
            "`hf auth login` with a token that may read it."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{repo_id} was not found on the Hub. Check the name; if it is private or gated, "
            f"accept its licence at {page_of(repo_id)} and run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo_id} has no revision {revision!r}") from error
    except (http_error, OSError) as error:
        if isinstance(error, OSError) and error.errno in _DISK_TROUBLE:
            raise
        raise ModelError(_unreachable(repo_id, error)) from error


def _unreachable(repo_id: str, error: BaseException) -> str:
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    if offline := [name for name in names if os.environ.get(name, "").upper() in _YES]:
        reason = f"{offline[0]} is set, so the Hub was not asked. Unset it and connect once"
    else:
        reason = f"the Hub could not be reached ({type(error).__name__}). Connect once"
    return (
        f"{repo_id} is not on this machine, and {reason}, or copy {page_of(repo_id)} into a folder "
        "and give that folder instead of the name."
    )


def is_downloaded(repo_id: str) -> bool:
    """Whether the Hub's cache holds the model files of a repository."""
    from huggingface_hub import try_to_load_from_cache

    return all(isinstance(try_to_load_from_cache(repo_id, name), str) for name in MODEL_FILES)


def cache_folder() -> Path:
    """Where downloads go; `HF_HOME` or `HF_HUB_CACHE` moves it."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def free_bytes(folder: Path) -> int:
    """Free space of the disk that a folder is on or will be on."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free
