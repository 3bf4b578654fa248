from __future__ import annotations

from sa3lora.models.registry import MODELS, base_name


def test_the_released_names_are_there() -> None:
    # model specification, section 1.4
    released = {name: entry.repo_id for name, entry in MODELS.items() if entry.repo_id}
    hub = "stabilityai/stable-audio-3-"
    kinds = ("small-music", "small-sfx", "medium")
    assert released == {
        **{name: hub + name for kind in kinds for name in (kind, f"{kind}-base")},
        "same-s": "stabilityai/SAME-S",
        "same-l": "stabilityai/SAME-L",
    }


def test_only_tiny_needs_no_download() -> None:
    assert [name for name, entry in MODELS.items() if entry.repo_id is None] == ["tiny"]


def test_base_name_drops_the_end() -> None:
    assert base_name("small-sfx-base") == base_name("small-sfx") == "small-sfx"
