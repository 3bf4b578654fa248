"""The verb `convert`: an adapter in another format, with proof."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sa3lora.cli.adapter_paths import adapter_file
from sa3lora.cli.base_models import check_fit, find_base
from sa3lora.cli.options import JsonOption, ModelOption
from sa3lora.cli.output import print_json, print_table, status
from sa3lora.errors import UsageError

if TYPE_CHECKING:
    from sa3lora.adapters.convert import Conversion


class Target(StrEnum):
    """Formats to write."""

    sa3 = "sa3"
    peft = "peft"
    diffusers = "diffusers"


class Stored(StrEnum):
    """Type of the stored tensors."""

    float32 = "float32"
    float16 = "float16"


class LegacyAxis(StrEnum):
    """What magnitudes scale in old files that do not say."""

    rows = "rows"
    cols = "cols"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("convert", no_args_is_help=True)(convert)


def convert(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Adapter file, run or PEFT folder.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="File for sa3, folder else.")
    ],
    to: Annotated[Target, typer.Option("--to", help="Format of the result.")] = Target.sa3,
    model: ModelOption = None,
    dtype: Annotated[
        Stored, typer.Option("--dtype", help="Stored numbers; float16 halves the file.")
    ] = Stored.float32,
    with_bases: Annotated[
        bool, typer.Option("--with-bases", help="Put the bases of an -xs adapter into the file.")
    ] = False,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Write the nearest lora of --rank R.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="R", min=1, help="With --approximate.")
    ] = None,
    legacy_axis: Annotated[
        LegacyAxis | None,
        typer.Option("--legacy-axis", help="What magnitudes scale in a file that does not say."),
    ] = None,
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="Accept an adapter of another base.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write PATH in another format, and prove that it does the same.

    Reads files of this project, the official tools, kohya and ComfyUI, old .ckpt files, PEFT and
    diffusers folders. Source and result run on the same random input, layer by layer, on the
    weights of --model (or of the model that PATH was trained on); PEFT folders are opened by PEFT
    itself. Nothing is written if they differ. PEFT has lora and dora-rows only; for other types
    --approximate --rank R writes the nearest lora and tells its error.

    Examples:
      sa3lora convert runs/vinyl --to peft -o vinyl-peft
      sa3lora convert runs/vinyl --to diffusers --model medium -o vinyl-diffusers
      sa3lora convert old.ckpt --model small-music-base --dtype float16 -o new.safetensors
    """
    import torch

    from sa3lora.adapters.convert import check_target, convert_adapter
    from sa3lora.adapters.files import read_adapter
    from sa3lora.adapters.weights import CheckpointWeights

    if approximate != (rank is not None):
        raise UsageError("--approximate and --rank R belong together: pass both, or none")
    source_path = adapter_file(path)
    check_target(out, to=to.value, overwrite=force)
    adapter = read_adapter(source_path, legacy_axis=legacy_axis.value if legacy_axis else None)
    if with_bases and (to is not Target.sa3 or not adapter.config.type.endswith("-xs")):
        raise UsageError("--with-bases is for -xs adapters and --to sa3: leave it out")
    source = find_base(model, adapter, label=str(path))
    shapes = check_fit(adapter, source, label=str(path), allow_other=allow_other_base)
    conversion = convert_adapter(
        adapter,
        out,
        to=to.value,
        weights=CheckpointWeights(source.weights_path),
        num_model_sites=len(shapes),
        dtype=torch.float16 if dtype is Stored.float16 else torch.float32,
        with_bases=with_bases,
        approximate=rank,
        overwrite=force,
        label=str(path),
    )
    _report(conversion, out, as_json=as_json)


def _report(conversion: Conversion, out: Path, *, as_json: bool) -> None:
    facts = _facts(conversion)
    if as_json:
        print_json({"out": str(out), **facts})
        return
    adapter = conversion.adapter
    status(
        f"{adapter.config.type} of rank {adapter.config.r}; {conversion.num_sites} of "
        f"{conversion.num_sites} layers converted, the model has {conversion.num_model_sites}"
    )
    rows: list[tuple[object, ...]]
    rows = [(g.kind, g.num_sites, f"{g.relative:.1e}") for g in conversion.groups]
    header = ["layer", "count", "error / change"]
    if conversion.approximation:
        of = {group.kind: group.relative for group in conversion.approximation}
        rows = [(*row, f"{of.get(str(row[0]), 0.0):.1%}") for row in rows]
        header.append(f"lost by rank {adapter.config.r}")
    print_table(rows, header=header)
    typer.echo(out)


def _facts(conversion: Conversion) -> dict[str, Any]:
    return {
        "type": conversion.adapter.config.type,
        "rank": conversion.adapter.config.r,
        "num_sites": conversion.num_sites,
        "num_model_sites": conversion.num_model_sites,
        "errors": [vars(group) for group in conversion.groups],
        "approximation": [vars(group) for group in conversion.approximation],
        "lost_energy": {site: lost.share for site, lost in sorted(conversion.lost.items())},
    }
