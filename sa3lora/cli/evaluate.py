"""The verb `evaluate`: base and adapter on the same prompts and seeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sa3lora.cli.adapter_paths import parse_weighted_path
from sa3lora.cli.options import (
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuietOption,
    resolve_device,
    resolve_dtype,
)
from sa3lora.cli.output import Advance, print_json, print_table, progress, status
from sa3lora.cli.score_rows import HEADER, score_rows
from sa3lora.errors import UsageError

if TYPE_CHECKING:
    from sa3lora.evaluation.result import EvaluationResult


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("evaluate", no_args_is_help=True)(evaluate)


def evaluate(
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER[=STRENGTH]...", help="Files or runs; strength 1.0."),
    ],
    reference: Annotated[
        Path,
        typer.Option(
            "--reference",
            metavar="DIR_OR_DATASET",
            help="Audio of the wanted style: a folder, or a dataset (its held-out clips).",
        ),
    ],
    model: ModelOption = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="One prompt a line, or a packaged list; default: captions of the reference, "
            "else of the held-out clips.",
        ),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            "--dataset",
            metavar="DATASET",
            help="Held-out loss on this; default: the reference, else what the run trained on.",
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=2, help="Clips of each system.")] = 32,
    duration_s: Annotated[float, typer.Option("--duration-s", help="Length of a clip.")] = 10.0,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Sampling steps; default: the model's.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", help="Default: the model's.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first clip.")] = 0,
    embedder: Annotated[
        str,
        typer.Option(
            "--embedder",
            metavar="tiny|laion|PATH",
            help="Embedding model: embedded CLAP, LAION's music CLAP, or a folder or .pt of one.",
        ),
    ] = "tiny",
    windows: Annotated[
        int, typer.Option("--windows", min=1, help="Windows of each reference track at most.")
    ] = 12,
    tuples: Annotated[
        int, typer.Option("--tuples", min=1, help="Tuples of the held-out loss.")
    ] = 64,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="OUT", help="Folder; default: evaluation/ of the run."),
    ] = None,
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="Accept an adapter of another base.")
    ] = False,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare base model and adapter on the same prompts and seeds, with 95 % intervals.

    Prints held-out loss, FAD, KAD, CLAP score and diversity, and says what they cannot tell
    apart. OUT gets evaluation.json, report.html with the audio, and TensorBoard scalars. Several
    adapters are evaluated together, as one stack.

    Examples:
      sa3lora evaluate runs/vinyl --reference latents/vinyl
      sa3lora evaluate runs/vinyl=0.8 --reference my_tracks --prompts music --embedder laion
    """
    pairs = [parse_weighted_path(text) for text in adapters]
    if not reference.is_dir():
        raise UsageError(
            f"--reference {reference}: no such folder of audio, and no dataset. Check the path."
        )
    if guidance_scale is not None and not math.isfinite(guidance_scale):
        raise UsageError(f"--guidance-scale must be a finite number, got {guidance_scale}")
    folder = out if out is not None else _default_out(pairs[0][0])
    place = resolve_device(device)

    from sa3lora.evaluation.embeddings import load_embedder
    from sa3lora.evaluation.evaluate import Options, evaluate_adapter
    from sa3lora.evaluation.report import check_output
    from sa3lora.evaluation.result import Settings
    from sa3lora.pipeline import SA3Pipeline
    from sa3lora.recipe import read_prompts

    check_output(folder)
    texts = None if prompts is None else read_prompts(prompts)
    embedding_model = load_embedder(embedder, device=place)
    pipeline = SA3Pipeline.from_pretrained(
        model or _model_of(pairs[0][0]), device=place, dtype=resolve_dtype(dtype, device=place)
    )
    with progress("evaluate", quiet=quiet) as advance:
        result = evaluate_adapter(
            pipeline,
            pairs,
            reference=reference,
            out=folder,
            embedder=embedding_model,
            settings=Settings(n, duration_s, seed, steps, guidance_scale),
            prompts=texts,
            dataset=dataset or _training_dataset(reference, pairs[0][0]),
            options=Options(
                max_windows=windows, probe_tuples=tuples, allow_other_base=allow_other_base
            ),
            progress=lambda stage, done, total: _advance(advance, stage, done, total),
        )
    _show(result, as_json=as_json)


def _advance(advance: Advance, stage: str, done: int, total: int) -> None:
    advance(done, total=total, note=stage)


def _run_of(adapter: Path) -> Path | None:
    """Find the run folder that an adapter lies in."""
    for folder in (adapter.parent, adapter.parent.parent, adapter.parent.parent.parent):
        if (folder / "recipe.yaml").is_file():
            return folder
    return None


def _default_out(adapter: Path) -> Path:
    run = _run_of(adapter.resolve())
    return Path(f"evaluation-{adapter.stem}") if run is None else run / "evaluation"


def _model_of(adapter: Path) -> str:
    from sa3lora.adapters.compat import base_name
    from sa3lora.adapters.files import read_adapter

    named = base_name(read_adapter(adapter))
    if named is None:
        status(f"model: tiny, since {adapter} does not tell its base model; see --model")
        return "tiny"
    status(f"model: {named}, which {adapter} was trained on")
    return named


def _training_dataset(reference: Path, adapter: Path) -> Path | None:
    """Take the dataset of the adapter's run for the held-out loss, unless the reference is one."""
    from sa3lora.evaluation.reference import is_dataset
    from sa3lora.recipe import load_recipe

    run = _run_of(adapter.resolve())
    if is_dataset(reference) or run is None:
        return None
    root = load_recipe(run / "recipe.yaml").data.root
    if root is None or not is_dataset(Path(root)):
        status(f"no held-out loss: the dataset of {run} is not at {root}; see --dataset")
        return None
    return Path(root)


def _show(result: EvaluationResult, *, as_json: bool) -> None:
    if as_json:
        print_json(result.to_json() | {"out": str(result.folder)})
        return
    print_table(score_rows(result), header=HEADER)
    for context in dict.fromkeys(str(score.context) for score in result.scores):
        names = [s.title for s in result.scores if str(s.context) == context]
        typer.echo(f"{', '.join(names)}: {context}")
    typer.echo("")
    for line in (*result.verdicts, *result.notes):
        typer.echo(line)
    typer.echo(f"\nReport and audio: {result.folder / 'report.html'}")
