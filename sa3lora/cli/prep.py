"""The verb `prep`: a folder of audio becomes a latents dataset."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sa3lora.cli.options import (
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    QuietOption,
    resolve_device,
    resolve_dtype,
)
from sa3lora.cli.output import Advance, print_json, print_table, progress, status

if TYPE_CHECKING:
    from datasets_prep.build import PrepReport


def register(app: typer.Typer) -> None:
    """Add `prep` to the program.

    Args:
        app: The program.
    """
    app.command("prep")(_prep)


def _prep(
    audio_dir: Annotated[Path, typer.Argument(metavar="AUDIO_DIR", help="Folder of audio files.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DATASET", help="Folder to write.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="MODEL", help="Whose autoencoder encodes; see `sa3lora models list`."
        ),
    ],
    caption_template: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Caption of files without a .txt or .json beside them. Placeholders: {title}, "
            "{genre}, {artist} and other tags, {folder}, {stem}, {words} (the name in words).",
        ),
    ] = None,
    segment_s: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Cut longer files into clips of this; the model's longest."
        ),
    ] = None,
    min_s: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="A shorter rest of a file joins the clip before it; 2, or a quarter clip.",
        ),
    ] = None,
    validation: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of files for validation.")
    ] = 0.1,
    test: Annotated[float, typer.Option(metavar="SHARE", help="Share of files for test.")] = 0.1,
    skip_broken: Annotated[
        bool,
        typer.Option("--skip-broken", help="Leave out files that cannot be used; else refuse."),
    ] = False,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Encode a folder of audio into a latents dataset for training.

    An interrupted prep goes on where it stopped; a second one encodes only what changed. With
    --skip-broken the status is 0 and the files left out are named on stderr and in dataset.json.

    Examples:
      sa3lora prep my_tracks -o latents/mine --model small-music-base
      sa3lora prep loops -o latents/loops --model tiny --caption-template "{genre} loop, {words}"
      accelerate launch --num_processes 4 -m sa3lora prep big -o latents/big --model medium-base
    """
    from datasets_prep.build import PrepOptions, prep
    from datasets_prep.ranks import Ranks
    from sa3lora.errors import Sa3LoraError
    from sa3lora.models.source import resolve_model

    ranks = Ranks.current()
    chosen = resolve_device(device)
    try:
        with ExitStack() as stack:
            report = prep(
                audio_dir,
                out,
                source=resolve_model(model),
                options=PrepOptions(
                    caption_template, segment_s, min_s, validation, test, skip_broken
                ),
                device=chosen,
                dtype=resolve_dtype(dtype, device=chosen),
                progress=_Bars(stack, quiet=quiet or not ranks.is_first),
            )
    except Sa3LoraError:
        if ranks.is_first:
            raise
        raise typer.Exit(1) from None  # the first process tells
    if ranks.is_first:
        _tell(report, as_json=as_json)


class _Bars:
    """One progress bar a stage, each closed when the next begins."""

    def __init__(self, stack: ExitStack, *, quiet: bool) -> None:
        self._stack = stack
        self._quiet = quiet
        self._stage = ""
        self._advance: Advance | None = None

    def __call__(self, stage: str, done: float, total: float, name: str) -> None:
        if stage != self._stage:
            self._stack.close()
            label = {"check": "checking files", "encode": "encoding seconds"}[stage]
            bar = progress(label, total=round(total), quiet=self._quiet)
            self._advance = self._stack.enter_context(bar)
            self._stage = stage
        if self._advance is not None:
            self._advance(round(done), note=name)


def _tell(report: PrepReport, *, as_json: bool) -> None:
    for item in report.silent:
        status(f"left out: {item.source}: {item.reason}")
    for item in report.skipped:
        status(f"skipped: {item.source}: {item.reason}")
    if report.skipped:
        status(f"skipped {len(report.skipped)} of {report.num_files}")
    if as_json:
        print_json(_as_json(report))
        return
    meta = report.meta
    seconds = {name: f"{value:.1f} s" for name, value in meta.seconds.items()}
    rows: list[tuple[str, int, str]] = [("clips", meta.counts["clips"], seconds["total"])]
    rows += [(f"  {s}", meta.counts[s], seconds[s]) for s in ("train", "validation", "test")]
    rows += [(f"captions: {name}", n, "") for name, n in meta.captions.items()]
    rows += [
        ("files used", meta.counts["sources"], ""),
        ("files skipped", len(report.skipped), ""),
        ("encoded now", report.encoded, ""),
        ("kept from before", report.kept, ""),
    ]
    title = f"{report.out}: latents of {meta.model}"
    print_table(rows, header=("", "count", "length"), title=title)


def _as_json(report: PrepReport) -> dict[str, Any]:
    return {
        "out": str(report.out),
        "num_files": report.num_files,
        "encoded": report.encoded,
        "kept": report.kept,
        **report.meta.to_json(),
    }
