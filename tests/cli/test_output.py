from __future__ import annotations

import json

import pytest

from sa3lora.cli.output import print_json, print_table, progress, status


def test_a_status_line_goes_to_stderr_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    status("a [bold]line[/bold] " + "x" * 300)
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err == "a [bold]line[/bold] " + "x" * 300 + "\n"


def test_a_table_in_a_pipe_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(
        [["runs/" + "v" * 120, 0.123456, 3], ["[b]", 12.0, 40]],
        header=["adapter", "loss", "n"],
        title="Losses",
    )
    written = capsys.readouterr()
    assert written.err == ""
    assert "Losses" in written.out
    assert "runs/" + "v" * 120 in written.out
    assert "0.1235" in written.out
    assert "[b]" in written.out


def test_numbers_stand_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([["a", 1], ["b", 100]], header=["name", "n"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("a") and line.endswith("  1") for line in lines)


def test_json_is_readable_by_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"title": "Été", "loss": 0.5, "best": None})
    assert json.loads(capsys.readouterr().out) == {"title": "Été", "loss": 0.5, "best": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"loss": float("inf")})


def test_progress_is_on_stderr_and_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Encoding", total=4) as advance:
        advance(2, note="a.wav")
        advance(3, total=3)
    written = capsys.readouterr()
    assert written.out == ""
    assert "Encoding" in written.err
    assert "3/3" in written.err
    with progress("Encoding", total=4, quiet=True) as advance:
        advance(4)
    assert capsys.readouterr().err == ""
