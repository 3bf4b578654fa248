from __future__ import annotations

import json

import pytest

from datasets_prep.captions import CaptionError, check_template, fill_template, read_caption
from datasets_prep.scan import SourceFile
from sa3lora.errors import UsageError


@pytest.fixture
def song(tmp_path):
    path = tmp_path / "Vol 2" / "01_Blue-Été.wav"
    path.parent.mkdir()
    return SourceFile(path, "Vol 2/01_Blue-Été.wav")


def read(song, *, template=None, **embedded):
    return read_caption(song, root=song.path.parents[1], embedded=embedded, template=template)


def beside(song, suffix, content):
    path = song.path.with_suffix(suffix)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")


def test_a_txt_sidecar_is_the_caption(song):
    beside(song, ".txt", "\ufeff a slow waltz \n")
    found = read(song, template="{stem}")
    assert (found.text, found.source) == ("a slow waltz", "sidecar")


@pytest.mark.parametrize("key", ["prompt", "caption"])
def test_a_json_sidecar_gives_caption_and_tags(song, key):
    beside(
        song, ".json", {key: "dub", "BPM": 92.5, "tags": {"mood": ["dark", "slow"], "key": None}}
    )
    found = read(song, genre="Reggae", bpm="1")
    assert (found.text, found.source) == ("dub", "sidecar")
    assert found.tags == {"genre": "Reggae", "bpm": "92.5", "mood": "dark, slow"}


def test_a_txt_goes_before_a_json_whose_tags_stay(song):
    beside(song, ".txt", "text")
    beside(song, ".json", {"prompt": "json", "genre": "dub"})
    found = read(song)
    assert (found.text, found.tags) == ("text", {"genre": "dub"})


def test_tags_never_become_columns(song):
    beside(song, ".json", {"prompt": "x", "split": "test", "duration_s": 3})
    assert read(song).tags == {"split": "test", "duration_s": "3"}


def test_licence_and_attribution_are_kept_apart(song):
    beside(song, ".json", {"prompt": "x", "license": "CC0", "attribution": "me"})
    found = read(song, license="GPL", title="T")
    assert (found.licence, found.attribution, found.tags) == ("CC0", "me", {"title": "T"})


def test_embedded_tags_are_recorded_and_are_no_caption(song):
    found = read(song, template="x", Title=" Blue ", tempo="120", encoder="lame", artist="")
    assert found.tags == {"title": "Blue", "bpm": "120"}
    with pytest.raises(CaptionError, match="no caption"):
        read(song, title="Blue")


def test_a_template_uses_tags_names_and_folder(song):
    found = read(song, template="{genre}, {words}, {stem}, {folder} {{x}}", genre="Jazz")
    assert found.text == "Jazz, Blue Été, 01_Blue-Été, Vol 2 {x}"
    assert found.source == "template"


def test_a_file_in_the_root_has_the_name_of_the_root_as_folder(tmp_path):
    (tmp_path / "loops").mkdir()
    file = SourceFile(tmp_path / "loops" / "a.wav", "a.wav")
    found = read_caption(file, root=tmp_path / "loops", embedded={}, template="{folder}")
    assert found.text == "loops"


def test_a_placeholder_without_value_is_named(song):
    with pytest.raises(CaptionError, match=r"no value for \{genre\}, it has folder, stem, words"):
        read(song, template="{genre} {stem}")


def test_a_template_stands_in_for_an_empty_txt(song):
    beside(song, ".txt", " \n")
    assert read(song, template="x").text == "x"
    with pytest.raises(CaptionError, match=r"01_Blue-Été.txt is empty"):
        read(song)


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".txt", b"\xff\xfe", "txt is not UTF-8"),
        (".json", "{", "json is not JSON"),
        (".json", "[1]", "json must hold a JSON object"),
        (".json", {"prompt": " "}, "prompt must be a text that is not empty"),
        (".json", {"prompt": 3}, "prompt must be a text that is not empty"),
        (".json", {"prompt": "a", "caption": "b"}, "has a prompt and another caption"),
        (".json", {"prompt": "a", "x": {"y": 1}}, "x must be a text, a number or a list"),
    ],
)
def test_a_sidecar_that_cannot_be_read_is_named_even_with_a_template(
    song, suffix, content, message
):
    beside(song, suffix, content)
    with pytest.raises(CaptionError, match=message):
        read(song, template="{stem}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (" ", "is empty"),
        ("{stem", "for braces"),
        ("{a b}", r"\{a b\} is no placeholder"),
        ("{stem.__class__}", "is no placeholder"),
        ("{stem!r}", "is no placeholder"),
        ("{}", "is no placeholder"),
    ],
)
def test_a_template_that_cannot_work_is_refused(template, message):
    with pytest.raises(UsageError, match=message):
        check_template(template)


def test_a_misspelt_placeholder_is_met_with_the_one_that_is_there() -> None:
    with pytest.raises(CaptionError, match=r"it has genre, stem; did you mean \{genre\}\?$"):
        fill_template("{genres} loop", values={"genre": "rock", "stem": "a"})
