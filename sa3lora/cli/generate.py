"""The verb `generate`: sound from prompts, with any number of adapters."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sa3lora.cli.options import (
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuietOption,
)


class Sampler(StrEnum):
    """Names of the samplers, as `sa3lora.flow` has them."""

    euler = "euler"
    pingpong = "pingpong"
    dpmpp = "dpmpp"
    rk4 = "rk4"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("generate", no_args_is_help=True)(generate)


def generate(
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT...", help="One clip each; may be empty: ''.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT.wav",
            help="File; several clips become OUT_1.wav, OUT_2.wav, and so on.",
        ),
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="PATH[=STRENGTH[:COND]][@LO:HI]",
            help="Adapter file or run, with a strength of 1.0 (COND in the conditioners), at "
            "noise levels LO to HI only (default 0:1); may be repeated.",
        ),
    ] = None,
    skip_layers: Annotated[
        list[str] | None,
        typer.Option(
            "--skip-layers",
            metavar="[N=]PATTERN",
            help="Layers that adapter N (default: all) leaves alone; may be repeated.",
        ),
    ] = None,
    model: ModelOption = None,
    duration: Annotated[
        list[float] | None,
        typer.Option(
            "--duration", metavar="SECONDS", help="One, or one a clip; default: 10, if it fits."
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None,
        typer.Option("--negative-prompt", metavar="PROMPT", help="What to move away from."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", min=1, help="Default: 50, or 8 if post-trained."),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", metavar="G", help="Default: 7, or 1 if post-trained."),
    ] = None,
    apg_scale: Annotated[
        float,
        typer.Option("--apg-scale", metavar="A", help="1: guidance across the estimate, 0: plain."),
    ] = 1.0,
    cfg_interval: Annotated[
        str,
        typer.Option("--cfg-interval", metavar="LO:HI", help="Noise levels with guidance."),
    ] = "0:1",
    sampler: Annotated[
        Sampler | None, typer.Option("--sampler", help="Default: euler, pingpong if post-trained.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="Default: a new one, printed.")
    ] = None,
    init_audio: Annotated[
        Path | None, typer.Option("--init-audio", metavar="FILE", help="Start from this sound.")
    ] = None,
    init_noise_level: Annotated[
        float | None,
        typer.Option(
            "--init-noise-level",
            metavar="L",
            help="Noise on it first: 0 gives it back, 1 ignores it; default: 0.9.",
        ),
    ] = None,
    inpaint: Annotated[
        Path | None, typer.Option("--inpaint", metavar="FILE", help="Keep this sound ...")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            "--region",
            metavar="A:B",
            help="... but for these seconds; A: is from A to the end; may be repeated.",
        ),
    ] = None,
    official_blocks: Annotated[
        bool,
        typer.Option("--official-blocks", help="Code long audio in the official blocks, slower."),
    ] = False,
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="Accept adapters of another base.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Generate one clip for each PROMPT, or several durations of one.

    The model is --model, or what the first adapter was trained on, or tiny. Prints file, seconds
    and seed of each clip; the same seed and arguments give the same sound.

    Examples:
      sa3lora generate "slow waltz on a music box" --duration 20 --seed 1 -o waltz.wav
      sa3lora generate "street organ" --adapter runs/vinyl=0.8 --adapter runs/tape=0.4 -o organ.wav
      sa3lora generate "street organ" --adapter runs/vinyl=0.8@0:0.5 -o late.wav
      sa3lora generate "street organ" --adapter runs/vinyl=0.8:0 --skip-layers layers[0-3] -o o.wav
      sa3lora generate "soft rain" --inpaint walk.wav --region 4:9 --region 20: -o rain.wav
      sa3lora generate "same, on strings" --init-audio walk.wav --init-noise-level 0.7 -o new.wav
    """  # fmt: skip
    from sa3lora.cli import generate_run as run

    chosen = run.Choices(
        prompts=prompts,
        out=out,
        adapters=run.parse_adapters(adapter or [], skipped=skip_layers or []),
        model=model,
        durations_s=duration or [],
        negative_prompt=negative_prompt,
        steps=steps,
        guidance_scale=guidance_scale,
        apg_scale=apg_scale,
        cfg_interval=run.parse_interval(cfg_interval),
        sampler=None if sampler is None else sampler.value,
        seed=seed,
        init_audio=init_audio,
        init_noise_level=init_noise_level,
        inpaint=inpaint,
        regions=[run.parse_region(text) for text in region or []],
        official_blocks=official_blocks,
        allow_other_base=allow_other_base,
        force=force,
        device=device,
        dtype=dtype,
    )
    run.run(chosen, quiet=quiet, as_json=as_json)
