"""The verb `validate`: every problem of a file or folder at once, no weights loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sa3lora.cli.kinds import Kind, kind_of_path
from sa3lora.cli.options import JsonOption
from sa3lora.cli.output import print_json
from sa3lora.errors import Sa3LoraError, UsageError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("validate", no_args_is_help=True)(validate)


def validate(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="Adapter, run, model folder, dataset or recipe."),
    ],
    check_values: Annotated[
        bool, typer.Option("--values", help="Also read an adapter's values: are all finite?")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List every problem of PATH at once, without loading weights; status 1 if there are any.

    Examples:
      sa3lora validate runs/vinyl/adapter.safetensors --values
      sa3lora validate models/vinyl
      sa3lora validate recipes/small_music_style.yaml
    """
    kind, target = _find(path)
    if check_values and kind is not Kind.ADAPTER:
        raise UsageError("--values belongs to adapters: leave it out")
    problems = find_problems(kind, target, check_values=check_values)
    if as_json:
        print_json({"path": str(target), "kind": kind.value, "problems": problems})
    elif problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        typer.echo("\n  ".join([f"{target} ({kind.value}) has {count}", *problems]))
    else:
        typer.echo(f"{target}: a valid {kind.value}")
    if problems:
        raise typer.Exit(1)


def find_problems(kind: Kind, target: Path, *, check_values: bool = False) -> list[str]:
    """List the problems of a file or folder of a known kind, in one line each."""
    if kind is Kind.ADAPTER:
        from sa3lora.adapters.files import validate_adapter

        return validate_adapter(target, check_values=check_values)
    if kind is Kind.MODEL:
        return _model_problems(target)
    if kind is Kind.DATASET:
        return _dataset_problems(target)
    return _recipe_problems(target)


def _find(path: str) -> tuple[Kind, Path]:
    from sa3lora.recipe import recipe_names, recipes_folder

    if not Path(path).exists() and path in recipe_names():
        return Kind.RECIPE, recipes_folder() / f"{path}.yaml"
    return kind_of_path(Path(path))


def _model_problems(folder: Path) -> list[str]:
    from sa3lora.models.checkpoint import compare_inventories, expected_inventory, read_inventory
    from sa3lora.models.config_parse import load_config
    from sa3lora.models.text_files import local_text_folder, text_problems

    problems = []
    config, inventory = None, None
    try:
        config = load_config(folder / "model_config.json")
    except Sa3LoraError as error:
        problems.append(str(error))
    try:
        inventory = read_inventory(folder / "model.safetensors")
    except Sa3LoraError as error:
        problems.append(str(error))
    if config is not None and inventory is not None:
        problems += compare_inventories(inventory, expected_inventory(config))
    if config is not None and (text := local_text_folder(folder, config)) is not None:
        problems += text_problems(text, width=config.cond_dim)
    return problems


def _dataset_problems(folder: Path) -> list[str]:
    from sa3lora.latents.manifest import read_meta, read_silence
    from sa3lora.latents.shards import list_shards, open_shard, read_rows

    problems, num_clips, meta = [], 0, None
    try:
        meta = read_meta(folder)
        read_silence(folder, channels=meta.channels)
    except Sa3LoraError as error:
        problems.append(str(error))
    shards = list_shards(folder)
    for shard in shards:
        try:
            num_clips += len(read_rows(open_shard(shard)))
        except Sa3LoraError as error:
            problems.append(str(error))
    if not shards:
        problems.append(f"{folder} holds no shards")
    elif meta is not None and not problems and num_clips != meta.counts["clips"]:
        problems.append(f"holds {num_clips} clips, dataset.json says {meta.counts['clips']}")
    return problems


def _recipe_problems(path: Path) -> list[str]:
    from sa3lora.recipe import load_recipe

    try:
        load_recipe(path)
    except Sa3LoraError as error:
        first, *rest = str(error).split("\n  ")
        return rest or [first]
    return []
