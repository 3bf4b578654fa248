"""What `inspect` does with several adapters: how they get in each other's way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sa3lora.cli.adapter_paths import parse_weighted_path
from sa3lora.cli.output import print_json, print_table, progress, status
from sa3lora.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from sa3lora.adapters.conflict import ConflictReport, LayerConflict
    from sa3lora.adapters.files import AdapterFile
    from sa3lora.pipeline import SA3Pipeline

_NOTE = "chosen by this very loss: it flatters them a little; evaluate on other clips"


def show_conflicts(
    texts: Sequence[str],
    *,
    model: str | None,
    dataset: Path | None,
    num_tuples: int,
    as_json: bool,
) -> None:
    """Compare adapters `PATH[=STRENGTH]`, and with a dataset search their best strengths."""
    from sa3lora.adapters.conflict import measure_conflicts
    from sa3lora.adapters.files import read_adapter
    from sa3lora.adapters.sites import find_layers

    paths = [parse_weighted_path(text) for text in texts]
    adapters = [(read_adapter(path), strength) for path, strength in paths]
    name = _model_of([adapter for adapter, _ in adapters], model, needed=dataset is not None)
    weights: dict[str, Tensor] | None = None
    search = None
    if name is not None:
        pipeline = _load(paths, name)
        layers = find_layers(pipeline.denoiser)
        sites = {site for adapter, _ in adapters for site in adapter.tensors}
        weights = {site: layers[site].get_parameter("weight") for site in sites}
        if dataset is not None:
            start = tuple(strength for _, strength in paths)
            search = _search(pipeline, dataset, start, num_tuples=num_tuples)
        pipeline.disable_adapters()
    report = measure_conflicts(adapters, weights)
    if as_json:
        listed = [{"path": str(path), "strength": strength} for path, strength in paths]
        print_json({"adapters": listed, "model": name, **asdict(report), "search": search})
        return
    _print(paths, report, search)


def _model_of(adapters: Sequence[AdapterFile], model: str | None, *, needed: bool) -> str | None:
    """Name the model, where base weights are needed: the option, or what an adapter names."""
    from sa3lora.adapters.compat import base_name

    if model is not None or (not needed and all(a.config.type == "lora" for a in adapters)):
        return model
    named = next(filter(None, (base_name(adapter) for adapter in adapters)), None)
    if named is None:
        raise UsageError("no adapter tells its base model, whose weights are needed: pass --model")
    status(f"model: {named}, which an adapter was trained on")
    return named


def _load(paths: Sequence[tuple[Path, float]], name: str) -> SA3Pipeline:
    from sa3lora.pipeline import SA3Pipeline

    pipeline = SA3Pipeline.from_pretrained(name, device="cpu")
    for number, (path, _) in enumerate(paths):
        pipeline.load_adapter(path, adapter_name=str(number), strength=0.0, allow_other_base=True)
    return pipeline


def _search(
    pipeline: SA3Pipeline, dataset: Path, start: tuple[float, ...], *, num_tuples: int
) -> dict[str, Any]:
    from sa3lora.evaluation.held_out import open_held_out_loss
    from sa3lora.probe import paired_difference, search_strengths

    held_out = open_held_out_loss(dataset, pipeline, num_tuples=num_tuples)
    if held_out.probe is None:
        raise UsageError(f"--dataset {dataset}: {held_out.note}")
    with progress("strengths") as advance:
        count = itertools.count(1)

        def measure(strengths: tuple[float, ...]) -> Tensor:
            pipeline.stack.set_strengths(dict(zip(pipeline.stack.names, strengths, strict=True)))
            advance(next(count), note=", ".join(f"{value:g}" for value in strengths))
            return held_out.losses(pipeline)[0]

        base = measure((0.0,) * len(start))
        found = search_strengths(measure, start)
    tracks = held_out.probe.tracks
    return {
        "best": list(found.best),
        "against_base": asdict(paired_difference(base, found.losses, tracks)),
        "loss_as_given": found.tried[start],
        "tried": [{"strengths": list(key), "loss": loss} for key, loss in found.tried.items()],
        "clips": held_out.note,
        "note": _NOTE,
    }


def _print(
    paths: Sequence[tuple[Path, float]], report: ConflictReport, search: dict[str, Any] | None
) -> None:
    from sa3lora.adapters.measure import kind_of

    for number, (path, strength) in enumerate(paths):
        typer.echo(f"{number + 1}  {path} at {strength:g}")
    kinds: dict[str, list[LayerConflict]] = {}
    for layer in report.layers:
        kinds.setdefault(kind_of(layer.site), []).append(layer)
    for total in report.totals:
        one, two = total.first, total.second
        rows = [
            row
            for kind, layers in kinds.items()
            if (row := _row(kind, layers, one, two)) is not None
        ]
        header = ("layer", "count", f"energy of {one + 1}", f"energy of {two + 1}", "cosine",
                  "angle out", "angle in", "interference")  # fmt: skip
        title = (
            f"{one + 1} and {two + 1}: cosine {total.cosine:+.3f}, interference "
            f"{total.interference:+.1%} of their energy"
        )
        print_table(rows, header=header, title=title)
    if search is not None:
        best = ", ".join(f"{value:g}" for value in search["best"])
        gain = search["against_base"]
        typer.echo(
            f"best strengths: {best}: loss {gain['adapter']:.4f}, base {gain['base']:.4f}, "
            f"as given {search['loss_as_given']:.4f}\n"
            f"{search['clips']} The strengths were {search['note']}."
        )


def _row(
    kind: str, layers: Sequence[LayerConflict], one: int, two: int
) -> tuple[str | int | float, ...] | None:
    """Sum up the layers of a kind that both change; of angles, the mean of the smallest."""
    found = [
        (layer, pair)
        for layer in layers
        for pair in layer.pairs
        if (pair.first, pair.second) == (one, two)
    ]
    if not found:
        return None
    energies = [
        sum(layer.energies[number] ** 2 for layer, _ in found) ** 0.5 for number in (one, two)
    ]
    angles_out = [pair.angles_out[0] for _, pair in found if pair.angles_out]
    angles_in = [pair.angles_in[0] for _, pair in found if pair.angles_in]
    share = [layer.energies[one] ** 2 + layer.energies[two] ** 2 for layer, _ in found]
    whole = sum(share)
    interference = sum(s * pair.interference for s, (_, pair) in zip(share, found, strict=True))
    return (
        kind,
        len(found),
        *energies,
        sum(pair.cosine for _, pair in found) / len(found),
        _degrees(angles_out),
        _degrees(angles_in),
        f"{interference / whole if whole > 0 else 0.0:+.1%}",
    )


def _degrees(angles: Sequence[float]) -> str:
    return f"{sum(angles) / len(angles):.1f}°" if angles else "-"
