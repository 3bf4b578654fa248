from __future__ import annotations

import errno
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import pytest
import typer

from sa3lora import __version__
from sa3lora.cli import main as program
from sa3lora.errors import DatasetError, UsageError

VERBS = [
    "demo", "prep", "train", "verify-resume", "runs", "generate", "evaluate", "merge", "convert",
    "resize", "extract", "card", "verify", "inspect", "validate", "bench", "models",
]  # fmt: skip
# pydantic is not among them: typer itself needs it.
HEAVY = ["torch", "numpy", "scipy", "peft", "transformers", "datasets", "accelerate", "librosa"]


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    logging.captureWarnings(False)
    root.handlers[:] = before


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], int]:
    """Run a program with one verb, `work`, that does what the test says."""

    def with_body(body: Callable[[], None]) -> int:
        def register(app: typer.Typer) -> None:
            app.command("work")(body)

        monkeypatch.setattr(program, "_VERBS", (*program._VERBS[:1], register))
        return program.main(["work"])

    return with_body


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        """Fail."""
        raise error

    return body


def test_success_is_0(run: Callable[..., int]) -> None:
    assert run(lambda: None) == 0


def test_an_expected_failure_is_one_message_and_1(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(DatasetError("1 of 2 files is broken: a.wav (0 bytes).\nMend it."))) == 1
    written = capsys.readouterr()
    assert written.err == "DatasetError: 1 of 2 files is broken: a.wav (0 bytes).\nMend it.\n"
    assert written.out == ""


def test_arguments_that_cannot_work_are_2(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(UsageError("--region 3:2 ends before it begins."))) == 2
    assert capsys.readouterr().err == "UsageError: --region 3:2 ends before it begins.\n"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["--frobnicate"], "No such option"),
        (["prep", "--frobnicate"], "No such option"),
        (["train"], "Missing argument"),
    ],
)
def test_wrong_usage_is_2_and_points_to_the_help(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(argv) == 2
    written = capsys.readouterr()
    assert complaint in written.err
    assert "--help" in written.err
    assert written.out == ""


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "Free some space there"),
        (errno.EACCES, "Change its permissions"),
        (errno.ENOENT, "Check the path"),
        (errno.EIO, "Check the disk"),
    ],
)
def test_trouble_with_the_disk_names_the_path_and_what_to_do(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], code: int, advice: str
) -> None:
    assert run(raising(OSError(code, os.strerror(code), "/music/latents.arrow"))) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"/music/latents.arrow: {os.strerror(code)}. {advice}" in message


def test_an_interrupt_is_130(run: Callable[..., int]) -> None:
    assert run(raising(KeyboardInterrupt())) == 130


@pytest.mark.parametrize("error", [ZeroDivisionError("a defect"), OSError("a library's reason")])
def test_a_defect_keeps_its_traceback(run: Callable[..., int], error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        run(raising(error))


def test_warnings_and_logs_go_to_stderr_as_lines(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        """Talk."""
        logging.getLogger("some.library").warning("beware [of] %d dogs", 3)
        logging.getLogger("some.library").info("chatter")
        logging.getLogger("sa3lora.models").info("the base is tiny")
        warnings.warn("old fashioned", DeprecationWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run(body) == 0
    written = capsys.readouterr()
    assert written.out == ""
    assert "warning: beware [of] 3 dogs\n" in written.err
    assert "the base is tiny\n" in written.err
    assert "chatter" not in written.err
    assert "old fashioned" in written.err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sa3lora {__version__}\n"


def test_help_lists_the_verbs_in_the_order_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--help"]) == 0
    lines = capsys.readouterr().out.partition("Commands:")[2].splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert listed == VERBS


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "models"])
def test_help_shows_examples_as_written_and_nothing_for_programmers(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"\n  Examples:\n    sa3lora {verb}" in shown
    for word in ("Args:", "Returns:", "Raises:"):
        assert word not in shown


def test_the_usage_line_shows_arguments_in_capitals(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["train", "--help"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "Usage: sa3lora train [OPTIONS] RECIPE [KEY=VALUE]..."


@pytest.mark.parametrize("arguments", [[], *([verb] for verb in VERBS)], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from sa3lora.cli.main import main; "
        f"status = main({[*arguments, '--help']!r}); "
        f"print('loaded', status, [m for m in {HEAVY!r} if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "loaded 0 []"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], *([verb] for verb in VERBS)], ids=" ".join)
def test_help_comes_in_half_a_second(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "sa3lora", *arguments, "--help"]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 0.5
