"""Captions and tags of a file: sidecars, what is embedded in it, and templates."""

from __future__ import annotations

import difflib
import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets_prep.scan import SourceFile
from sa3lora.errors import DatasetError, UsageError

_CAPTION_KEYS = ("prompt", "caption")
_LICENCE_KEYS = ("licence", "license")
# Of the tags inside a file those that say what it sounds like or whose it is.
_EMBEDDED = {
    name: name for name in ("title", "artist", "album", "genre", "date", "composer", "bpm")
}
_EMBEDDED |= {"tempo": "bpm", "tbpm": "bpm", "label": "label", "license": "licence"}
_EMBEDDED |= {"licence": "licence"}
_TRACK_NUMBER = re.compile(r"^\d{1,3}[\s._-]+(?=\D)")


class CaptionError(DatasetError):
    """Report one file whose caption cannot be made; the text is the reason alone."""


@dataclass(frozen=True)
class Caption:
    """The caption of a file, where it comes from, and the parts for making others."""

    text: str
    source: str
    tags: dict[str, str]
    licence: str | None = None
    attribution: str | None = None


def read_caption(
    file: SourceFile, *, root: Path, embedded: Mapping[str, str], template: str | None
) -> Caption:
    """Find the caption of a file.

    First hit wins: `song.txt` beside `song.wav`; `prompt` or `caption` of `song.json`; the
    template. Tags come from the file itself and, going before those, from the JSON sidecar,
    whichever of them the caption came from.

    Args:
        file: The file.
        root: The scanned folder, whose name `{folder}` gives for files directly in it.
        embedded: Tags inside the file.
        template: Text with placeholders, or None.

    Returns:
        The caption.

    Raises:
        CaptionError: If there is none, a sidecar cannot be read, or a placeholder has no value.
    """
    tags = _embedded_tags(embedded)
    side = _read_json(file.path.with_suffix(".json"))
    tags |= side.tags
    licence = tags.pop("licence", None)
    attribution = tags.pop("attribution", None)
    text, origin = _read_txt(file.path.with_suffix(".txt")), "sidecar"
    if text is None:
        text = side.caption
    if text is None and template is not None:
        text, origin = (
            fill_template(template, values=_values(file, root=root, tags=tags)),
            "template",
        )
    if text is None:
        beside = file.path.with_suffix(".txt")
        raise CaptionError(f"{beside.name} is empty" if beside.exists() else "no caption")
    return Caption(text, origin, tags, licence, attribution)


def check_template(template: str) -> None:
    """Refuse a template that can never be filled.

    Args:
        template: Text with placeholders such as `{title}`.

    Raises:
        UsageError: If it is empty or its braces do not match.
    """
    if not template.strip():
        raise UsageError('--caption-template is empty: give a text, such as "{stem}".')
    try:
        fields = _fields(template)
    except ValueError as error:
        raise UsageError(
            f"--caption-template {template!r}: {error}. Write {{{{ and }}}} for braces."
        ) from error
    wrong = [name for name in fields if not name.isidentifier()]
    if wrong:
        raise UsageError(
            f"--caption-template {template!r}: {{{wrong[0]}}} is no placeholder. "
            "Placeholders are names like {title}, {genre}, {folder}, {stem}, {words}."
        )


def fill_template(template: str, *, values: Mapping[str, str]) -> str:
    """Put values into a template.

    Args:
        template: Text with placeholders.
        values: By name of placeholder.

    Returns:
        The text.

    Raises:
        CaptionError: If a placeholder has no value.
    """
    missing = [name for name in _fields(template) if not values.get(name)]
    if missing:
        names = ", ".join(f"{{{name}}}" for name in dict.fromkeys(missing))
        close = difflib.get_close_matches(missing[0], list(values), n=1, cutoff=0.7)
        hint = f"; did you mean {{{close[0]}}}?" if close else ""
        raise CaptionError(f"no value for {names}, it has {', '.join(sorted(values))}{hint}")
    return "".join(
        literal + (values[name] if name is not None else "")
        for literal, name, _, _ in string.Formatter().parse(template)
    ).strip()


def _fields(template: str) -> list[str]:
    parts = string.Formatter().parse(template)
    return [
        name + (f":{spec}" if spec else "") + (f"!{conversion}" if conversion else "")
        for _, name, spec, conversion in parts
        if name is not None
    ]


def _values(file: SourceFile, *, root: Path, tags: Mapping[str, str]) -> dict[str, str]:
    folder = Path(file.relative).parent.name or root.resolve().name
    words = _TRACK_NUMBER.sub("", file.path.stem)
    words = " ".join(re.split(r"[\s_.-]+", words)).strip()
    return {**tags, "folder": folder, "stem": file.path.stem, "words": words}


def _embedded_tags(embedded: Mapping[str, str]) -> dict[str, str]:
    named = ((_EMBEDDED.get(key.lower()), value.strip()) for key, value in embedded.items())
    return {key: value for key, value in named if key is not None and value}


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise CaptionError(f"{path.name} is not UTF-8 text") from None
    except OSError as error:
        raise CaptionError(f"{path.name} cannot be read: {error.strerror or error}") from error


def _read_txt(path: Path) -> str | None:
    text = _read_text(path)
    if text is None:
        return None
    return text.strip() or None


@dataclass(frozen=True)
class _Sidecar:
    caption: str | None
    tags: dict[str, str]


def _read_json(path: Path) -> _Sidecar:
    text = _read_text(path)
    if text is None:
        return _Sidecar(None, {})
    try:
        values = json.loads(text)
    except ValueError as error:
        raise CaptionError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise CaptionError(f"{path.name} must hold a JSON object")
    captions = [values.pop(key) for key in _CAPTION_KEYS if values.get(key) is not None]
    if any(not isinstance(text, str) or not text.strip() for text in captions):
        raise CaptionError(f"{path.name}: prompt must be a text that is not empty")
    if len({text.strip() for text in captions}) > 1:
        raise CaptionError(f"{path.name} has a prompt and another caption: keep one")
    nested = values.pop("tags", None)
    if isinstance(nested, dict):
        values = {**values, **nested}
    elif nested is not None:
        values["tags"] = nested
    tags = {str(key).lower(): _as_text(path, key, value) for key, value in values.items()}
    for key in _LICENCE_KEYS:
        if key in tags:
            tags["licence"] = tags.pop(key)
    return _Sidecar(captions[0].strip() if captions else None, {k: v for k, v in tags.items() if v})


def _as_text(path: Path, key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value).strip()
    if isinstance(value, list):
        return ", ".join(filter(None, (_as_text(path, key, item) for item in value)))
    raise CaptionError(f"{path.name}: {key} must be a text, a number or a list of them")
