"""The verb `bench`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from sa3lora.cli.options import Device, DeviceOption, JsonOption, QuietOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from sa3lora.models.config import ModelConfig
    from sa3lora.models.denoiser import Denoiser
    from sa3lora.training.bench import BenchResult
    from sa3lora.training.bench_fits import Fit
    from sa3lora.training.precision import Precision


class Mode(StrEnum):
    """What is recomputed, as `train.checkpointing`."""

    fast = "fast"
    lean = "lean"
    auto = "auto"


class Products(StrEnum):
    """Type of matrix products."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Base(StrEnum):
    """How the frozen base is held, as `train.base_dtype`."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"
    nf4 = "nf4"


class Moves(StrEnum):
    """What takes the step, as `optim.name`."""

    adamw = "adamw"
    adamw8bit = "adamw8bit"
    prodigy = "prodigy"
    muon = "muon"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("bench")(bench)


def bench(
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="Registry name, folder or Hub id.")
    ] = "tiny",
    num_frames: Annotated[
        int, typer.Option("--frames", metavar="N", min=1, help="Latent frames of a clip.")
    ] = 512,
    batch: Annotated[int, typer.Option("--batch", metavar="B", min=1, help="Clips a step.")] = 1,
    adapter_type: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="lora, dora-rows or another type.")
    ] = "lora",
    r: Annotated[int, typer.Option("--rank", "-r", metavar="R", min=1, help="Rank.")] = 16,
    mode: Annotated[Mode, typer.Option("--mode", help="As train.checkpointing.")] = Mode.fast,
    dtype: Annotated[Products, typer.Option("--dtype", help="Of products.")] = Products.float32,
    base: Annotated[
        Base, typer.Option("--base", help="As train.base_dtype; auto: in the type of products.")
    ] = Base.auto,
    optimizer: Annotated[Moves, typer.Option("--optimizer", help="As optim.name.")] = Moves.adamw,
    compile_blocks: Annotated[
        bool, typer.Option("--compile", help="As train.compile: blocks compiled first.")
    ] = False,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="Steps that are measured.")
    ] = 5,
    device: DeviceOption = Device.auto,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a training step on this machine, and say what fits on which card.

    A step is compared with a bare float32 forward pass of the same model, both in turn, and its
    matrix products with the fastest that this machine does. A model with a name that is not on the
    disk gets random weights, which cost the same.

    Examples:
      sa3lora bench
      sa3lora bench --model small-music-base --frames 512 --type dora-rows
      sa3lora bench --model medium-base --mode lean --dtype bfloat16 --json
      sa3lora bench --model medium-base --dtype bfloat16 --base nf4 --optimizer adamw8bit
    """
    import torch

    from sa3lora.adapters.config import AdapterConfig
    from sa3lora.cli.options import resolve_device
    from sa3lora.cli.output import print_json, progress
    from sa3lora.models.compiled import require_compiler
    from sa3lora.training.bench import BenchSettings, run_bench
    from sa3lora.training.bench_fits import fits_of

    where = resolve_device(device)
    make, config, weights = _model(model, where)
    settings = BenchSettings(
        num_frames=num_frames,
        batch=batch,
        adapter=AdapterConfig(type=adapter_type, r=r),
        mode=mode.value,
        compute=getattr(torch, dtype.value),
        rounds=rounds,
        compile=compile_blocks,
        base=base.value,
        optimizer=optimizer.value,
    )
    if compile_blocks:
        require_compiler(where)
    with progress("bench", total=rounds, quiet=quiet) as advance:
        result = run_bench(make, config, settings, device=where, progress=advance)
    fits = fits_of(config, settings.adapter, optim=settings.recipe.optim)
    setting = (
        f"{model} ({weights}), {batch} x {num_frames} frames, {adapter_type} r {r}, {optimizer}; "
        f"{settings.precision}"
    )
    if as_json:
        rows = [vars(fit) for fit in fits]
        held = settings.precision.quantised or str(settings.precision.base).removeprefix("torch.")
        chosen = {"dtype": dtype, "base_dtype": held, "optimizer": optimizer}
        told = {"setting": setting, "device": where, **chosen}
        print_json({**told, **result.to_json(), "fits": rows})
    else:
        _show(setting, where, result, fits)


def _model(name: str, device: str) -> tuple[Callable[[Precision], Denoiser], ModelConfig, str]:
    """Give a maker of the base, its configuration, and where its weights come from."""
    from sa3lora.models.config_parse import parse_config
    from sa3lora.models.fixtures import released_config
    from sa3lora.models.hub import is_downloaded
    from sa3lora.models.random_model import random_denoiser
    from sa3lora.models.registry import MODELS
    from sa3lora.models.source import resolve_model

    entry = MODELS.get(name)
    if entry is not None and entry.repo_id is not None and not is_downloaded(entry.repo_id):
        config = parse_config(released_config(name))
        return (
            lambda held: random_denoiser(
                config, seed=0, dtype=held.base, device=device, quantised=held.quantised
            ),
            config,
            "random weights",
        )
    source = resolve_model(name)
    return (
        lambda held: source.load_denoiser(device=device, dtype=held.base, quantised=held.quantised),
        source.config,
        "its own weights",
    )


def _show(setting: str, device: str, result: BenchResult, fits: list[Fit]) -> None:
    import torch

    from sa3lora.cli.output import print_table

    limit = "" if result.peak_is_exact else ", an upper limit"
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    rows = {
        "what": f"{setting}; {device}{threads}",
        "mode": result.recomputation,
        "step": (
            f"{result.step_s:.3f} s, {result.num_frames / result.step_s:.0f} frames/s, "
            f"{result.ratio:.2f} times a bare float32 forward pass of {result.forward_s:.3f} s"
        ),
        "products": (
            f"{result.step_flops / result.step_s / 1e9:.0f} GFLOP/s, {result.efficiency:.0%} of "
            f"the fastest product here ({result.ceiling_flops_per_s / 1e9:.0f} GFLOP/s)"
        ),
        "memory": (
            f"{result.peak_bytes / 1e6:.0f} MB over the model{limit}; estimated "
            f"{result.estimated_bytes / 1e6:.0f} MB; a forward pass "
            f"{result.forward_peak_bytes / 1e6:.0f} MB; the base {result.base_bytes / 1e6:.0f} MB"
        ),
    }
    for name, value in rows.items():
        typer.echo(f"{name:<9} {value}")
    typer.echo("\nwhat fits, estimated, products in bfloat16:")
    print_table(
        [
            [fit.card_gb, fit.base_dtype, fit.num_frames or "nothing", fit.recomputation]
            for fit in fits
        ],
        header=["GB", "base", "frames a batch", "recomputed"],
    )
