"""The verb `verify-resume`: does a killed run end in the same adapter on this machine?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sa3lora.cli.options import Device, DeviceOption, JsonOption
from sa3lora.cli.output import print_json, status
from sa3lora.errors import UsageError

if TYPE_CHECKING:
    from sa3lora.training.resume_proof import ResumeProof


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("verify-resume")(verify_resume)


def verify_resume(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a packaged recipe.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change."),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=2, help="How many steps to train.")
    ] = 8,
    kill_at: Annotated[
        int | None,
        typer.Option(
            "--kill-at", metavar="K", help="Kill when this step is done; default: 5, or N - 1."
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Prove that a killed and resumed run of RECIPE equals an uninterrupted one.

    Trains N steps, trains them again in a process that is killed (SIGKILL) and resumed, and
    compares adapter and optimizer state bit for bit; status 1 if they differ. It works in a
    temporary folder and leaves nothing.

    Examples:
      sa3lora verify-resume tiny_style data.root=latents/vinyl
      sa3lora verify-resume small_music_style data.root=latents/vinyl --steps 20 --kill-at 13
    """
    from sa3lora.cli.options import resolve_device
    from sa3lora.cli.train import model_of_recipe
    from sa3lora.recipe import load_recipe
    from sa3lora.training.resume_proof import verify_resume as prove

    if any(override.partition("=")[0] == "train.max_steps" for override in overrides or []):
        raise UsageError(f"train.max_steps: say how many steps with --steps; without it {steps}.")
    loaded = load_recipe(recipe, overrides or [])
    proof = prove(
        loaded,
        model=model_of_recipe(loaded),
        steps=steps,
        kill_at=min(5, steps - 1) if kill_at is None else kill_at,
        device=resolve_device(device),
        tell=status,
    )
    if as_json:
        from dataclasses import asdict

        print_json({**asdict(proof), "equal": proof.equal})
    else:
        _show(proof)
    if not proof.equal:
        raise typer.Exit(1)


def _show(proof: ResumeProof) -> None:
    where = f"resumed from step {proof.resumed_from}" if proof.resumed_from else "begun again"
    typer.echo(f"killed     after step {proof.killed_at} of {proof.steps}, {where}")
    for name, (whole, resumed) in (("adapter", proof.adapters), ("optimizer", proof.states)):
        sign = "=" if whole == resumed else "is not"
        typer.echo(f"{name:<10} {whole} {sign} {resumed}")
    if proof.equal:
        typer.echo("verdict    the resumed run equals the uninterrupted one, bit for bit")
        return
    typer.echo("\n  ".join(["verdict    the resumed run is another:", *proof.differences]))
