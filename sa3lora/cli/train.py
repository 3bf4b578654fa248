"""The verb `train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sa3lora.cli.options import Device, DeviceOption, Dtype, QuietOption

if TYPE_CHECKING:
    from sa3lora.models.source import ModelSource
    from sa3lora.recipe import Recipe
    from sa3lora.runs import RunFolder
    from sa3lora.training.result import TrainResult

_RUNS = Path("runs")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("train")(train)


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a packaged recipe.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name of the run; default: date and time."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run NAME from its last checkpoint.")
    ] = False,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-change",
            metavar="KEY",
            help="With --resume: let this recipe key, or `dataset`, differ; repeatable.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and stop; nothing is written.")
    ] = False,
    device: DeviceOption = Device.auto,
    dtype: Annotated[
        Dtype | None,
        typer.Option("--dtype", help="Precision of products; default: train.dtype of RECIPE."),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Train one LoRA adapter as RECIPE describes.

    The run lies in runs/NAME: recipe, manifest, checkpoints, previews, TensorBoard events and, at
    the end, adapter.safetensors. A run that was interrupted goes on with --resume and ends in the
    same adapter. If the loss is no number, the run steps back to the last checkpoint and goes on
    with half the learning rate and without those clips; the second time it ends and names them.

    Examples:
      sa3lora train tiny_style data.root=latents/vinyl
      sa3lora train small_music_style data.root=latents/vinyl adapter.r=8 --name vinyl
      sa3lora train small_music_style data.root=latents/vinyl adapter.r=8 --name vinyl --resume
    """
    from sa3lora.cli.options import resolve_device
    from sa3lora.errors import UsageError
    from sa3lora.models.source import resolve_model
    from sa3lora.recipe import load_recipe
    from sa3lora.runs import RunFolder
    from sa3lora.training.processes import is_main_process

    if resume and name is None:
        raise UsageError("--resume needs the name of the run: --name NAME.")
    if allow_change and not resume:
        raise UsageError("--allow-change is for going on with a run: add --resume --name NAME.")
    changes = [*(overrides or []), *([f"train.dtype={dtype.value}"] if dtype else [])]
    loaded = load_recipe(recipe, changes)
    where = resolve_device(device)
    if name is not None and not resume and is_main_process():
        RunFolder.check_free(name, root=_RUNS)
    source = resolve_model(model_of_recipe(loaded))
    _print_plan(loaded, source, where)
    if dry_run:
        return
    run = _open_run(name, resume=resume, device=where)
    result = _train(
        loaded,
        run,
        source,
        resume=resume,
        allow_change=allow_change or [],
        device=where,
        quiet=quiet,
    )
    _report(result, [recipe, *changes], name=run.name)


def model_of_recipe(recipe: Recipe) -> str:
    """Choose the model: the recipe's, else the dataset's, else `tiny`, which is then told."""
    from sa3lora.cli.output import status
    from sa3lora.latents.format import LatentsDataset

    if recipe.model is not None:
        return recipe.model
    if recipe.data.root is None:
        status("the recipe names no model: taking tiny")
        return "tiny"
    model = LatentsDataset.open(recipe.data.root).meta.model
    status(f"the recipe names no model: taking {model}, which the dataset was made with")
    return model


def _print_plan(recipe: Recipe, source: ModelSource, device: str) -> None:
    from sa3lora.training.processes import is_main_process
    from sa3lora.training.trainer import plan_training

    lines = plan_training(recipe, source=source, device=device).lines()
    if is_main_process():
        typer.echo("\n".join(lines))


def _open_run(name: str | None, *, resume: bool, device: str) -> RunFolder:
    from sa3lora.runs import RunFolder
    from sa3lora.training.processes import on_main_process

    def open_folder() -> str:
        if not resume or name is None:
            return str(RunFolder.create(name, root=_RUNS).path)
        return str(RunFolder.resume(name, root=_RUNS).path)

    return RunFolder(on_main_process(open_folder, device=device))


def _train(
    recipe: Recipe,
    run: RunFolder,
    source: ModelSource,
    *,
    resume: bool,
    allow_change: list[str],
    device: str,
    quiet: bool,
) -> TrainResult:
    from sa3lora.cli.output import progress, status
    from sa3lora.training.events import TrainEvent
    from sa3lora.training.processes import is_main_process
    from sa3lora.training.trainer import train as train_adapter

    hidden = quiet or not is_main_process()
    with progress("training", total=recipe.train.max_steps, quiet=hidden) as advance:

        def show(event: TrainEvent) -> None:
            note = "" if event.loss is None else f"loss {event.loss:.4f}"
            if event.text:
                status(f"step {event.step}: {event.text}")
            if event.kind in ("step", "note"):
                advance(event.step, note=note)

        return train_adapter(
            recipe,
            run=run,
            source=source,
            resume=resume,
            allow_change=allow_change,
            device=device,
            progress=show,
        )


def _report(result: TrainResult, said: list[str], *, name: str) -> None:
    from sa3lora.errors import RunError
    from sa3lora.training.processes import is_main_process

    if not result.finished:
        raise RunError(
            f"{result.signal} stopped the run after step {result.step}; it was saved. "
            f"Go on with: sa3lora train {shlex.join(said)} --name {shlex.quote(name)} --resume"
        )
    if not is_main_process():
        return
    typer.echo(f"adapter      {result.adapter_path}")
    if result.validation is not None:
        typer.echo(f"loss         {result.validation}")
    typer.echo(f"step         {result.adapter_step} of {result.step}: {result.reason}")
    if result.overfits_since is not None:
        typer.echo(f"overfitting  since step {result.overfits_since}; see fit/ in TensorBoard")
    typer.echo(f"tensorboard  tensorboard --logdir {result.run.path}")
