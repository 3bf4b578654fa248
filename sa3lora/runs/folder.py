"""The run folder `runs/NAME`, and writing files whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from sa3lora.errors import RunError

_FORBIDDEN_IN_NAMES = set('/\\:*?"<>|')


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that it exists complete or not at all, even through a crash or a full disk.

    Missing parent folders are created. An earlier file of that name stays until the new one is
    safe on disk.

    Args:
        path: Where the file shall be.
        data: Its whole content.

    Raises:
        OSError: If it cannot be written; `filename` is then always set, and nothing is left behind.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        # A failing write or fsync does not know its file, and the random name means nothing.
        raise OSError(error.errno, error.strerror, str(target)) from error


def write_json_atomic(path: str | os.PathLike[str], value: object) -> None:
    """Write a value as indented JSON, complete or not at all.

    Args:
        path: Where the file shall be.
        value: Plain lists, dicts, strings, finite numbers, booleans and None.

    Raises:
        ValueError: If a number is not finite: JSON has no name for it.
        OSError: As `write_bytes_atomic`.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes_atomic(path, (text + "\n").encode())


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hash a file without holding it in memory.

    Args:
        path: The file.

    Returns:
        SHA-256 as 64 lower-case hexadecimal digits.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_name(name: str) -> None:
    if not name or name.startswith(".") or _FORBIDDEN_IN_NAMES & set(name) or name != name.strip():
        raise RunError(
            f"{name!r} is no name for a run. Use a plain folder name: letters, digits, - and _."
        )


def _taken(path: Path) -> RunError:
    return RunError(f"{path} exists already. Pass --resume to go on with it, or another --name.")


def _no_run(name: str, root: Path) -> RunError:
    found = sorted(path.parent.name for path in root.glob("*/recipe.yaml"))
    there = f"Runs in {root}: {', '.join(found)}." if found else f"{root} has none."
    return RunError(f"no run {name!r}. {there} Name one that is there, or start it anew.")


class RunFolder:
    """Where one training run keeps everything: `recipe.yaml`, manifest, adapter, checkpoints.

    Sub-folders come into being when something first asks for them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Point at a folder without touching the disk; use `create` or `open`."""
        self.path = Path(path)

    @classmethod
    def create(cls, name: str | None, *, root: str | os.PathLike[str] = "runs") -> RunFolder:
        """Make a new run folder.

        Args:
            name: Its name below `root`; None takes the date and time.
            root: Folder of all runs, created when missing.

        Returns:
            The run, with an empty folder on disk.

        Raises:
            RunError: If the name is taken or is no plain folder name.
        """
        chosen = time.strftime("%Y-%m-%d-%H%M%S") if name is None else name
        _check_name(chosen)
        run = cls(Path(root) / chosen)
        run.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            run.path.mkdir()
        except FileExistsError:
            if name is None:  # a second run within the second
                return cls.create(f"{chosen}-{secrets.token_hex(2)}", root=root)
            raise _taken(run.path) from None
        return run

    @staticmethod
    def check_free(name: str, *, root: str | os.PathLike[str] = "runs") -> None:
        """Say what `create` would refuse, before anything is loaded.

        Raises:
            RunError: If the name is taken or is no plain folder name.
        """
        _check_name(name)
        if (Path(root) / name).exists():
            raise _taken(Path(root) / name)

    @classmethod
    def open(
        cls, name_or_path: str | os.PathLike[str], *, root: str | os.PathLike[str] = "runs"
    ) -> RunFolder:
        """Find a run that exists.

        Args:
            name_or_path: Name below `root`, or the path of the folder, which goes first.
            root: Folder of all runs.

        Returns:
            The run.

        Raises:
            RunError: If there is no such folder; the message lists the runs there are.
        """
        given = Path(name_or_path)
        for candidate in (given, Path(root) / given):
            # Without a recipe it is some other folder that happens to carry the name of a run.
            if (candidate / "recipe.yaml").is_file():
                return cls(candidate)
        raise _no_run(str(name_or_path), Path(root))

    @classmethod
    def resume(cls, name: str, *, root: str | os.PathLike[str] = "runs") -> RunFolder:
        """Find a run to go on with, by its plain name below `root` and nowhere else.

        A run that was killed before it wrote its recipe is found too.

        Args:
            name: Its name.
            root: Folder of all runs.

        Returns:
            The run.

        Raises:
            RunError: If there is no such folder, or the name is no plain folder name.
        """
        _check_name(name)
        run = cls(Path(root) / name)
        if not run.path.is_dir():
            raise _no_run(name, Path(root))
        return run

    @property
    def name(self) -> str:
        """Name of the run, which is that of its folder."""
        return self.path.name

    @property
    def recipe_path(self) -> Path:
        """The recipe as it ran, overrides included."""
        return self.path / "recipe.yaml"

    @property
    def manifest_path(self) -> Path:
        """What the run was made from and ended in."""
        return self.path / "manifest.json"

    @property
    def adapter_path(self) -> Path:
        """The finished adapter."""
        return self.path / "adapter.safetensors"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, created now if missing."""
        return self._folder("checkpoints")

    @property
    def previews(self) -> Path:
        """Folder of audio previews, created now if missing."""
        return self._folder("previews")

    @property
    def evaluation(self) -> Path:
        """Folder of reports, created now if missing."""
        return self._folder("evaluation")

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Write `manifest.json` whole.

        Args:
            manifest: Plain JSON values.
        """
        write_json_atomic(self.manifest_path, manifest)

    def manifest(self) -> dict[str, Any]:
        """Read `manifest.json`.

        Returns:
            Its content.

        Raises:
            RunError: If it is missing or is not a JSON object.
        """
        try:
            content = json.loads(self.manifest_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"{self.path} has no manifest.json: the run ended before it began to train. "
                "Delete the folder and train again."
            ) from None
        except ValueError as error:
            raise RunError(f"{self.manifest_path} is damaged: {error}.") from error
        if not isinstance(content, dict):
            raise RunError(f"{self.manifest_path} is damaged: expected a JSON object.")
        return content
