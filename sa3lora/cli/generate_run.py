"""What `generate` does, once its arguments are split."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sa3lora.cli.adapter_paths import PlayedAdapter, parse_played_path, skip_layers
from sa3lora.cli.options import resolve_device, resolve_dtype
from sa3lora.cli.output import print_json, progress, status
from sa3lora.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from sa3lora.pipeline import GenerationOutput, SA3Pipeline

_DEFAULT_S = 10.0


@dataclass(frozen=True)
class Choices:
    """The arguments of `generate`; see its help."""

    prompts: list[str]
    out: Path
    adapters: list[PlayedAdapter]
    model: str | None
    durations_s: list[float]
    negative_prompt: str | None
    steps: int | None
    guidance_scale: float | None
    apg_scale: float
    cfg_interval: tuple[float, float]
    sampler: str | None
    seed: int | None
    init_audio: Path | None
    init_noise_level: float | None
    inpaint: Path | None
    regions: list[tuple[float, float | None]]
    official_blocks: bool
    allow_other_base: bool
    force: bool
    device: str
    dtype: str


def parse_adapters(texts: Sequence[str], *, skipped: Sequence[str] = ()) -> list[PlayedAdapter]:
    """Split each `PATH[=STRENGTH[:COND]][@LO:HI]`, and each `[N=]PATTERN` of layers to skip.

    Raises:
        UsageError: If a strength is no number, an interval no interval, or N no adapter.
        AdapterError: If a file is missing.
    """
    return skip_layers([parse_played_path(text) for text in texts], skipped)


def parse_interval(text: str) -> tuple[float, float]:
    """Split `LO:HI`.

    Raises:
        UsageError: If it is not 0 <= LO <= HI <= 1.
    """
    low, high = _two_numbers(text, option="--cfg-interval", form="LO:HI")
    if high is None or not 0 <= low <= high <= 1:
        raise UsageError(f"--cfg-interval {text}: must be LO:HI with 0 <= LO <= HI <= 1")
    return low, high


def parse_region(text: str) -> tuple[float, float | None]:
    """Split `A:B`; without B it goes to the end.

    Raises:
        UsageError: If it is no pair of seconds in order.
    """
    start, end = _two_numbers(text, option="--region", form="A:B, in seconds")
    if start < 0 or (end is not None and end <= start):
        raise UsageError(f"--region {text}: must be A:B with 0 <= A < B, in seconds")
    return start, end


def _two_numbers(text: str, *, option: str, form: str) -> tuple[float, float | None]:
    first, colon, second = text.partition(":")
    try:
        low, high = float(first), float(second) if second else None
    except ValueError:
        low = math.nan
        high = None
    if not colon or not math.isfinite(low) or not math.isfinite(high or 0.0):
        raise UsageError(f"{option} {text}: must be {form}")
    return low, high


def run(chosen: Choices, *, quiet: bool, as_json: bool) -> None:
    """Check everything that needs no model, load it, generate, write, and print."""
    _check_together(chosen)
    paths = output_paths(chosen.out, max(len(chosen.prompts), len(chosen.durations_s)))
    if not chosen.force and (taken := [path for path in paths if path.exists()]):
        raise UsageError(f"{taken[0]} exists already. Pass --force to replace it, or another name.")
    device = resolve_device(chosen.device)
    sounds = {path: _read(path) for path in (chosen.init_audio, chosen.inpaint) if path}
    pipeline = _load(chosen, device=device)
    _check_writable(chosen.out, pipeline.sample_rate)
    output = _generate(chosen, pipeline, sounds, quiet=quiet)
    _write(paths, output)
    _report(chosen, pipeline, output, paths=paths, as_json=as_json)


def output_paths(out: Path, count: int) -> list[Path]:
    """Name the file of each clip."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}_{i}{out.suffix}") for i in range(1, count + 1)]


def _check_together(chosen: Choices) -> None:
    if chosen.regions and chosen.inpaint is None:
        raise UsageError("--region needs --inpaint FILE, the sound that it is a part of")
    if chosen.inpaint is not None and not chosen.regions:
        raise UsageError("--inpaint needs --region A:B, the seconds to make anew")
    if chosen.init_noise_level is not None and chosen.init_audio is None:
        raise UsageError("--init-noise-level needs --init-audio FILE")
    count, given = len(chosen.prompts), len(chosen.durations_s)
    if count > 1 and given > 1 and count != given:
        raise UsageError(f"give one --duration or one a prompt: {count} prompts, {given} durations")


def _read(path: Path) -> tuple[Tensor, int]:
    from sa3lora.audio import read_audio

    return read_audio(path)


def _load(chosen: Choices, *, device: str) -> SA3Pipeline:
    from sa3lora.adapters.stacked import missing_from_stack
    from sa3lora.pipeline import SA3Pipeline

    name = chosen.model or _model_of(chosen.adapters)
    dtype = resolve_dtype(chosen.dtype, device=device)
    pipeline = SA3Pipeline.from_pretrained(name, device=device, dtype=dtype)
    played = {}
    for adapter in chosen.adapters:
        loaded = pipeline.load_adapter(
            adapter.path,
            strength=adapter.strength,
            conditioner_strength=adapter.conditioner_strength,
            skip_layers=adapter.skip_layers,
            interval=adapter.interval,
            allow_other_base=chosen.allow_other_base,
        )
        played[str(adapter.path)] = pipeline.stack.adapter(loaded), adapter.strength
    for note in missing_from_stack(played):
        status(note)
    return pipeline


def _model_of(adapters: Sequence[PlayedAdapter]) -> str:
    from sa3lora.adapters.compat import base_name
    from sa3lora.adapters.files import read_adapter

    for adapter in adapters:
        if (name := base_name(read_adapter(adapter.path))) is not None:
            status(f"model: {name}, which {adapter.path} was trained on")
            return name
    if adapters:
        raise UsageError(f"{adapters[0].path} does not tell its base model: pass --model")
    status("model: tiny, the embedded one; --model names another")
    return "tiny"


def _check_writable(out: Path, sample_rate: int) -> None:
    """Find out before the long work that the format is unknown or has no such rate."""
    import torch

    from sa3lora.audio import write_audio
    from sa3lora.errors import AudioError

    with tempfile.TemporaryDirectory() as folder:
        try:
            write_audio(
                Path(folder) / f"trial{out.suffix}", torch.zeros(2, sample_rate // 10), sample_rate
            )
        except AudioError as error:
            if isinstance(error.__cause__, OSError):
                return  # the trial's own disk; whether OUT's takes the sound shows in the end
            raise UsageError(f"--out {out}: {error.reason}") from error


def _generate(
    chosen: Choices,
    pipeline: SA3Pipeline,
    sounds: dict[Path, tuple[Tensor, int]],
    *,
    quiet: bool,
) -> GenerationOutput:
    from sa3lora.pipeline import Guidance

    durations = chosen.durations_s or [min(_DEFAULT_S, pipeline.config.max_duration_s)]
    longest = max(durations)
    for path, (wave, rate) in sounds.items():
        _tell_what_is_used(path, wave.shape[1] / rate, duration_s=longest)
    regions = [(a, longest if b is None else b) for a, b in chosen.regions]
    level = chosen.init_noise_level
    with progress("generate", quiet=quiet) as advance:
        try:
            return pipeline(
                chosen.prompts,
                duration_s=durations[0] if len(durations) == 1 else durations,
                negative_prompt=chosen.negative_prompt,
                num_inference_steps=chosen.steps,
                guidance_scale=chosen.guidance_scale,
                guidance=Guidance(apg_scale=chosen.apg_scale, interval=chosen.cfg_interval),
                seed=chosen.seed,
                sampler=chosen.sampler,
                init_audio=sounds[chosen.init_audio] if chosen.init_audio else None,
                init_noise_level=0.9 if level is None else level,
                inpaint_audio=sounds[chosen.inpaint] if chosen.inpaint else None,
                inpaint_regions=regions,
                official_blocks=chosen.official_blocks,
                progress=_steps(advance),
            )
        except ValueError as error:  # what the pipeline says about its arguments
            raise UsageError(str(error)) from error


def _tell_what_is_used(path: Path, length_s: float, *, duration_s: float) -> None:
    """Name a given sound that is cut, or that silence has to follow."""
    if length_s > duration_s + 0.01:
        status(f"{path} is {length_s:.2f} s: its first {duration_s:g} s are used; see --duration")
    elif length_s < duration_s - 0.01:
        status(f"{path} is {length_s:.2f} s: silence follows it up to {duration_s:g} s")


def _steps(advance: Callable[..., None]) -> Callable[[int, int], None]:
    return lambda done, total: advance(done, total=total)


def _write(paths: Sequence[Path], output: GenerationOutput) -> None:
    """Write every clip, or none that was not there before."""
    from sa3lora.audio import write_audio

    new = [path for path in paths if not path.exists()]
    done = False
    try:
        for path, audio in zip(paths, output.audio, strict=True):
            write_audio(path, audio, output.sample_rate)
        done = True
    finally:
        for path in () if done else new:
            path.unlink(missing_ok=True)


def _report(
    chosen: Choices,
    pipeline: SA3Pipeline,
    output: GenerationOutput,
    *,
    paths: Sequence[Path],
    as_json: bool,
) -> None:
    seconds = [audio.shape[1] / output.sample_rate for audio in output.audio]
    if not as_json:
        for path, duration_s in zip(paths, seconds, strict=True):
            typer.echo(f"{path}  {duration_s:.2f} s  seed {output.seed}")
        return
    prompts = chosen.prompts * (len(paths) if len(chosen.prompts) == 1 else 1)
    clips = [
        {"path": str(path), "prompt": prompt, "duration_s": duration_s}
        for path, prompt, duration_s in zip(paths, prompts, seconds, strict=True)
    ]
    print_json(
        {
            "clips": clips,
            "seed": output.seed,
            "sample_rate": output.sample_rate,
            "model": pipeline.source.name,
            "adapters": [
                {**asdict(adapter), "path": str(adapter.path)} for adapter in chosen.adapters
            ],
        }
    )
