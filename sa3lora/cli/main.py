"""The program `sa3lora`: its verbs, and how it ends when something goes wrong."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sa3lora import __version__
from sa3lora.cli import (
    bench,
    card,
    convert,
    demo,
    evaluate,
    extract,
    generate,
    merge,
    models,
    prep,
    resize,
    runs,
    train,
    validate,
    verify,
    verify_resume,
)
from sa3lora.cli import inspect as inspect_verb
from sa3lora.cli.allocator import restart_to_train_in_less_memory
from sa3lora.errors import Sa3LoraError, UsageError

# In the order of the work, which is the order of `--help`.
_VERBS: tuple[Callable[[typer.Typer], None], ...] = (
    demo.register,
    prep.register,
    train.register,
    verify_resume.register,
    runs.register,
    generate.register,
    evaluate.register,
    merge.register,
    convert.register,
    resize.register,
    extract.register,
    card.register,
    verify.register,
    inspect_verb.register,
    validate.register,
    models.register,
    bench.register,
)
_INTERRUPTED = 130


def create_app() -> typer.Typer:
    """Build the program with all its verbs.

    Nothing heavy is imported: the verbs load torch and the rest inside their bodies.

    Returns:
        The application.
    """
    # rich_markup_mode=None: plain help comes up at once, and keeps examples as they are written.
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
    )
    app.callback()(_program)
    for register in _VERBS:
        register(app)
    _shape_help(app)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        0 done, 1 an expected failure told in one message, 2 wrong usage, 130 interrupted.
    """
    # before torch is loaded: threads that spin while they wait make everything ten times slower as
    # soon as another program wants a core
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if argv is None:
        restart_to_train_in_less_memory(sys.argv[1:])
    _send_logs_to_stderr()
    try:
        create_app()(args=None if argv is None else list(argv), prog_name="sa3lora")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except UsageError as error:
        return _fail(error, str(error), status=2)
    except Sa3LoraError as error:
        return _fail(error, str(error), status=1)
    except OSError as error:
        if error.errno is None:  # raised by a library for reasons of its own: show where
            raise
        return _fail(error, _disk_trouble(error), status=1)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sa3lora {__version__}")
        raise typer.Exit


def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Train, mix, evaluate and play LoRA adapters for Stable Audio 3.

    Examples:
      sa3lora demo
      sa3lora prep my_tracks -o latents/mine --model small-music-base
      sa3lora train small_music_style data.root=latents/mine --name mine
      sa3lora generate "a slow waltz" --adapter runs/mine/adapter.safetensors=0.8 -o waltz.wav
    """


class _Verb(TyperCommand):
    """A command whose usage line shows its arguments as their metavars are written."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Give `RECIPE [KEY=VALUE]...` where typer has `{RECIPE} [[KEY=VALUE]...]...`."""
        pieces = [self.options_metavar] if self.options_metavar else []
        for param in self.get_params(ctx):
            metavar = getattr(param, "metavar", None)
            is_argument = param.param_type_name == "argument"
            pieces += [metavar] if metavar and is_argument else param.get_usage_pieces(ctx)
        return pieces


def _shape_help(app: typer.Typer) -> None:
    """Show of each docstring what is for users, with the examples as they are written."""
    for command in app.registered_commands:
        command.cls = _Verb
        command.help = _for_users(command.help or inspect.getdoc(command.callback) or "")
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _shape_help(group.typer_instance)
    if app.registered_callback is not None:
        callback = app.registered_callback
        callback.help = _for_users(inspect.getdoc(callback.callback) or "")


def _for_users(docstring: str) -> str:
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    shown = []
    for paragraph in paragraphs:
        if paragraph.startswith(("Args:", "Returns:", "Raises:")):
            break
        # The mark keeps click from filling the lines of a paragraph.
        shown.append(f"\b\n{paragraph}" if paragraph.startswith("Example") else paragraph)
    return "\n\n".join(shown)


def _fail(error: BaseException, message: str, *, status: int) -> int:
    typer.echo(f"{type(error).__name__}: {message}", err=True)
    return status


def _disk_trouble(error: OSError) -> str:
    advice = {
        errno.ENOSPC: "Free some space there or write elsewhere, then run the command again.",
        errno.EDQUOT: "Free some space there or write elsewhere, then run the command again.",
        errno.EFBIG: "Write to a disk without that limit, then run the command again.",
        errno.EACCES: "Change its permissions, or use another folder.",
        errno.EPERM: "Change its permissions, or use another folder.",
        errno.EROFS: "Write to another folder.",
        errno.ENOENT: "Check the path.",
        errno.ENOTDIR: "Check the path: a part of it is a file.",
        errno.EISDIR: "Name a file, not a folder.",
        errno.EEXIST: "Use another name; no part of it may be a file.",
    }.get(error.errno or 0, "Check the disk and the path, then run the command again.")
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{where}{error.strerror or error}. {advice}"


class _StderrHandler(logging.Handler):
    """Write warnings of ours and of libraries as one line each, beside a progress bar if one runs.

    rich is imported with the first line, so that `--help` does not pay for it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        from sa3lora.cli.output import status

        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        status(f"{level}{self.format(record)}")


def _send_logs_to_stderr() -> None:
    logging.captureWarnings(True)
    root = logging.getLogger()
    if not any(isinstance(handler, _StderrHandler) for handler in root.handlers):
        root.addHandler(_StderrHandler())
    logging.getLogger("sa3lora").setLevel(logging.INFO)
    logging.getLogger("datasets_prep").setLevel(logging.INFO)
