"""The verb `inspect`: what an adapter, a model folder or a dataset is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sa3lora.cli.kinds import Kind, kind_of_path
from sa3lora.cli.options import JsonOption, ModelOption
from sa3lora.cli.output import print_json, print_table
from sa3lora.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from sa3lora.adapters.files import AdapterFile


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("inspect", no_args_is_help=True)(inspect)


def inspect(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Adapter, run, model folder or dataset; or several adapters PATH[=STRENGTH].",
        ),
    ],
    model: ModelOption = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            "--dataset", metavar="DATASET", help="With several adapters: search their strengths."
        ),
    ] = None,
    tuples: Annotated[
        int, typer.Option("--tuples", metavar="N", min=1, help="Fixed draws of that search.")
    ] = 32,
    as_json: JsonOption = False,
) -> None:
    """Tell what PATH is: type, rank, layers, base, hashes, trigger, licence, and what it changes.

    With --model, an adapter's changes are given relative to the weights of that model. Several
    adapters are compared: energy of their changes, cosine and smallest principal angles between
    them, and how much they reinforce or cancel each other; with --dataset also the strengths at
    which the stack's held-out loss is lowest.

    Examples:
      sa3lora inspect runs/vinyl/adapter.safetensors
      sa3lora inspect runs/vinyl/adapter.safetensors --model small-music-base --json
      sa3lora inspect runs/vinyl runs/tape=0.5 --dataset latents/vinyl
      sa3lora inspect latents/vinyl
    """
    if len(paths) > 1:
        from sa3lora.cli.conflict_run import show_conflicts

        show_conflicts(paths, model=model, dataset=dataset, num_tuples=tuples, as_json=as_json)
        return
    if dataset is not None:
        raise UsageError("--dataset belongs to several adapters: name two or more")
    path = Path(paths[0])
    kind, target = kind_of_path(path)
    if model is not None and kind is not Kind.ADAPTER:
        raise UsageError("--model belongs to adapters: leave it out")
    if kind is Kind.ADAPTER:
        _show_adapter(target, model=model, as_json=as_json)
        return
    if kind is Kind.MODEL:
        facts = _model_facts(target)
    elif kind is Kind.DATASET:
        facts = _dataset_facts(target)
    else:
        raise UsageError(f"{path} is a recipe: read it, or check it with sa3lora validate")
    _print(facts, as_json=as_json)


def _show_adapter(path: Path, *, model: str | None, as_json: bool) -> None:
    from sa3lora.adapters.files import read_adapter
    from sa3lora.adapters.measure import measure_change

    adapter = read_adapter(path)
    facts = _adapter_facts(path, adapter)
    weights, relation = _base_weights(adapter, model, label=str(path)) if model else (None, None)
    if relation is not None:
        facts["relation"] = relation
    changes = measure_change(adapter, weights)
    if as_json:
        layers = [vars(change) for change in changes]
        print_json({**facts, "sites": adapter.sites, "changes": layers})
        return
    _print(facts, as_json=False)
    rows = [
        (c.kind, c.num_sites, _shown(c.norm), _shown(c.relative, percent=True)) for c in changes
    ]
    print_table(rows, header=("layer", "count", "norm of change", "of the base"))


def _adapter_facts(path: Path, adapter: AdapterFile) -> dict[str, Any]:
    from sa3lora.adapters.compat import base_name
    from sa3lora.adapters.header import PREFIX
    from sa3lora.adapters.stacked import stack_of

    config, metadata = adapter.config, adapter.metadata
    tensors = [tensor for group in adapter.tensors.values() for tensor in group.values()]
    ranks = sorted({adapter.rank(site) for site in adapter.sites})
    return {
        "path": str(path),
        "kind": Kind.ADAPTER.value,
        "type": config.type,
        "rank": ranks[0] if len(ranks) == 1 else ranks,
        "alpha": config.alpha,
        "layers": len(adapter.sites),
        "parameters": sum(tensor.numel() for tensor in tensors),
        "bytes": sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()),
        "include": None if config.include is None else list(config.include),
        "exclude": None if config.exclude is None else list(config.exclude),
        "base": base_name(adapter),
        "dit_hash": metadata.get(f"{PREFIX}dit_hash"),
        "ae_hash": metadata.get(f"{PREFIX}ae_hash"),
        "dataset": metadata.get(f"{PREFIX}dataset"),
        "step": metadata.get(f"{PREFIX}step") or config.extra.get("step"),
        "on_top_of": [f"{one.name} at {one.strength:g}" for one in stack_of(adapter)] or None,
        "trigger": metadata.get(f"{PREFIX}trigger"),
        "licence": metadata.get(f"{PREFIX}licence"),
        "title": metadata.get("modelspec.title"),
        "date": metadata.get("modelspec.date"),
        "content_hash": adapter.content_hash,
    }


def _base_weights(adapter: AdapterFile, model: str, *, label: str) -> tuple[dict[str, Tensor], str]:
    from sa3lora.adapters.compat import check_base
    from sa3lora.adapters.sites import find_layers, site_shapes
    from sa3lora.models.source import resolve_model

    source = resolve_model(model)
    denoiser = source.load_denoiser()
    relation = check_base(
        adapter,
        name=source.name,
        dit_hash=source.dit_hash,
        shapes=site_shapes(denoiser),
        label=label,
        allow_other=True,
    )
    layers = find_layers(denoiser)
    return {site: layers[site].get_parameter("weight") for site in adapter.sites}, relation


def _model_facts(folder: Path) -> dict[str, Any]:
    from sa3lora.models.checkpoint import read_inventory
    from sa3lora.models.source import resolve_model

    source = resolve_model(str(folder))
    config = source.config
    inventory = read_inventory(source.weights_path)
    facts: dict[str, Any] = {
        "path": str(folder),
        "kind": Kind.MODEL.value,
        "name": source.name,
        "objective": config.objective,
        "sample_rate": config.sample_rate,
        "downsampling_ratio": config.downsampling_ratio,
        "latent_channels": config.latent_channels,
        "max_duration_s": config.max_duration_s,
        "tensors": len(inventory),
        "parameters": sum(_count(shape) for shape in inventory.values()),
        "bytes": source.weights_path.stat().st_size,
        "ae_hash": source.ae_hash,
    }
    if config.dit is None:
        return {**facts, "kind": "autoencoder"}
    return {
        **facts,
        "width": config.dit.embed_dim,
        "depth": config.dit.depth,
        "dit_hash": source.dit_hash,
    }


def _dataset_facts(folder: Path) -> dict[str, Any]:
    from sa3lora.latents.manifest import read_meta

    meta = read_meta(folder).to_json()
    skipped, silent = len(meta.pop("skipped")), len(meta.pop("silent"))
    return {
        "path": str(folder),
        "kind": Kind.DATASET.value,
        **meta,
        "skipped": skipped,
        "silent": silent,
    }


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _print(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        if value is None or value == "":
            typer.echo(f"{key:<{width}}  -")
        elif isinstance(value, dict):
            inner = ", ".join(f"{name} {item}" for name, item in value.items())
            typer.echo(f"{key:<{width}}  {inner}")
        else:
            typer.echo(f"{key:<{width}}  {value}")


def _shown(value: float | None, *, percent: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if percent else f"{value:.4g}"
