import pytest

from sa3lora.cli.adapter_paths import (
    PlayedAdapter,
    parse_played_path,
    parse_weighted_path,
    skip_layers,
)
from sa3lora.cli.generate_run import parse_adapters
from sa3lora.errors import AdapterError, UsageError


@pytest.fixture
def adapter(tmp_path):
    path = tmp_path / "runs" / "vinyl" / "adapter.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    return path


def test_strength_is_one_unless_given(adapter):
    assert parse_weighted_path(str(adapter)) == (adapter, 1.0)
    assert parse_weighted_path(f"{adapter}=-0.25") == (adapter, -0.25)


def test_a_run_folder_is_its_adapter(adapter):
    assert parse_weighted_path(f"{adapter.parent}=0.5") == (adapter, 0.5)


def test_a_path_may_hold_an_equals_sign(tmp_path):
    path = tmp_path / "a=2.safetensors"
    path.write_bytes(b"x")
    assert parse_weighted_path(str(path)) == (path, 1.0)
    assert parse_weighted_path(f"{path}=0.5") == (path, 0.5)


@pytest.mark.parametrize(
    ("strength", "message"), [("loud", "must be a number, got 'loud'"), ("nan", "must be finite")]
)
def test_a_strength_that_is_no_number_is_wrong_usage(adapter, strength, message):
    with pytest.raises(UsageError, match=message):
        parse_weighted_path(f"{adapter}={strength}")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(AdapterError, match=r"nowhere.safetensors: no such file"):
        parse_weighted_path(f"{tmp_path}/nowhere.safetensors=1")
    with pytest.raises(AdapterError, match=r"is a folder without adapter.safetensors"):
        parse_weighted_path(str(tmp_path))


def test_noise_levels_follow_the_strength(adapter):
    assert parse_played_path(str(adapter)) == PlayedAdapter(adapter)
    late = PlayedAdapter(adapter, 0.5, (0.0, 0.25))
    assert parse_played_path(f"{adapter}=0.5@0:0.25") == late
    assert parse_played_path(f"{adapter.parent}@0.2:1") == PlayedAdapter(adapter, 1.0, (0.2, 1.0))


def test_a_path_may_hold_an_at_sign(tmp_path):
    path = tmp_path / "me@home.safetensors"
    path.write_bytes(b"x")
    assert parse_played_path(str(path)) == PlayedAdapter(path)
    assert parse_played_path(f"{path}=0.5@0:1") == PlayedAdapter(path, 0.5)


@pytest.mark.parametrize("levels", ["0.8:0.2", "0:2", "-1:0", "a:b", "0:", ":1", "nan:1"])
def test_noise_levels_that_are_none_are_wrong_usage(adapter, levels):
    with pytest.raises(UsageError, match="must be @LO:HI with 0 <= LO <= HI <= 1, got @"):
        parse_played_path(f"{adapter}=0.5@{levels}")


def test_an_adapter_whose_name_holds_an_at_sign_is_a_file_like_any_other(tmp_path):
    path = tmp_path / "me@home.safetensors"
    path.touch()
    assert parse_adapters([f"{path}=0.5", str(path)]) == [
        PlayedAdapter(path, 0.5),
        PlayedAdapter(path),
    ]


def test_conditioners_may_have_a_strength_of_their_own(adapter):
    apart = PlayedAdapter(adapter, 0.5, conditioner_strength=0.0)
    assert parse_played_path(f"{adapter}=0.5:0") == apart
    assert parse_played_path(f"{adapter}=0.5:0@0:0.25") == PlayedAdapter(
        adapter, 0.5, (0.0, 0.25), 0.0
    )
    with pytest.raises(UsageError, match="must be a number, got 'off'"):
        parse_played_path(f"{adapter}=0.5:off")


def test_a_path_may_hold_a_colon(tmp_path):
    path = tmp_path / "take=1:2.safetensors"
    path.touch()
    assert parse_played_path(str(path)) == PlayedAdapter(path)
    assert parse_played_path(f"{path}=0.5") == PlayedAdapter(path, 0.5)


def test_layers_are_skipped_by_one_adapter_or_by_all(adapter):
    one, two = PlayedAdapter(adapter), PlayedAdapter(adapter, 0.5)
    changed = skip_layers([one, two], ["layers[0-3]", "2=.ff."])
    assert [played.skip_layers for played in changed] == [
        ("layers[0-3]",), ("layers[0-3]", ".ff."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3=.ff.", "there is no adapter 3, there are 1"),
        ("x=.ff.", "there is no adapter x"),
        ("1=", "there is no pattern"),
    ],
)
def test_layers_of_no_adapter_are_wrong_usage(adapter, text, message):
    with pytest.raises(UsageError, match=message):
        skip_layers([PlayedAdapter(adapter)], [text])


def test_layers_to_skip_need_an_adapter():
    with pytest.raises(UsageError, match="needs --adapter"):
        skip_layers([], ["layers[0-3]"])
