"""A folder that can be handed on: files, their checksums, and the way to the Hub."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sa3lora.errors import AdapterError
from sa3lora.runs import sha256_file

SUMS_NAME = "SHA256SUMS"
README_NAME = "README.md"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def write_share_folder(
    out: Path, *, readme: str, files: Mapping[str, Path], overwrite: bool = False
) -> list[str]:
    """Write a folder of files with a README and checksums; it appears complete or not at all.

    Args:
        out: The folder.
        readme: Text of README.md.
        files: What to copy, by name in the folder.
        overwrite: Replace an earlier folder of this kind.

    Returns:
        The names of all files, sorted.

    Raises:
        AdapterError: If `out` exists and is not to be replaced, or is some other folder.
    """
    if out.exists():
        if not overwrite:
            raise AdapterError(
                f"{out} exists already. Pass --force to replace it, or another name."
            )
        if not out.is_dir() or (any(out.iterdir()) and not (out / SUMS_NAME).is_file()):
            raise AdapterError(
                f"{out} holds other things, which would be lost. Give another name, or remove it."
            )
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        (temporary / README_NAME).write_text(readme, encoding="utf-8")
        for name, source in files.items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        sums = hash_files(temporary)
        lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
        (temporary / SUMS_NAME).write_text("".join(lines), encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        temporary.replace(out)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted([*sums, SUMS_NAME])


def hash_files(folder: Path) -> dict[str, str]:
    """Give SHA-256 of every file of a folder but its own list, by name below it."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SUMS_NAME
    }


def verify_folder(folder: Path) -> list[str]:
    """Recompute the checksums of a folder; an empty list means that all is as it was written.

    Raises:
        AdapterError: If it has no readable list of checksums.
    """
    try:
        lines = (folder / SUMS_NAME).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"{folder} has no readable {SUMS_NAME}, so nothing to verify") from error
    listed: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise AdapterError(f"{folder / SUMS_NAME}: line {number} is no checksum and name")
        listed[match[2]] = match[1]
    found = hash_files(folder)
    problems = [f"{name}: missing" for name in listed if name not in found]
    problems += [
        f"{name}: changed, {found[name][:12]}… instead of {digest[:12]}…"
        for name, digest in listed.items()
        if name in found and found[name] != digest
    ]
    return problems + [f"{name}: not listed" for name in found if name not in listed]


def upload_arguments(folder: Path, repo_id: str) -> dict[str, Any]:
    """Give what `HfApi.upload_folder` is called with.

    Raises:
        AdapterError: If the name is no `owner/name`.
    """
    if not _REPO.fullmatch(repo_id):
        raise AdapterError(f"--push takes a Hub repository as OWNER/NAME, got {repo_id!r}")
    return {
        "repo_id": repo_id,
        "repo_type": "model",
        "folder_path": str(folder),
        "commit_message": f"Upload {folder.name} with sa3lora",
    }


def push_folder(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a verified folder to a model repository of the Hub, made if it is not there.

    Returns:
        Address of the repository.

    Raises:
        AdapterError: If the folder is not as it was written, or the Hub refuses or is out of reach.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    arguments = upload_arguments(folder, repo_id)
    problems = verify_folder(folder)
    if problems:
        raise AdapterError("\n  ".join([f"{folder} is not as it was written", *problems]))
    # what both httpx and httpx2 call HTTPError; the Hub's library uses one or the other
    http_error: type[BaseException] = HfHubHTTPError.__mro__[1]
    api = HfApi()
    try:
        address = api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(**arguments)
    except (http_error, OSError) as error:
        raise AdapterError(
            f"{repo_id} could not be written ({type(error).__name__}: {_first_line(error)}). The "
            f"folder {folder} is complete. Run `hf auth login` with a token that may write, check "
            "the connection and HF_HUB_OFFLINE, then pass --push again."
        ) from error
    return str(address)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
