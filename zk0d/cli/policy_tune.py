"""``zk0bot policy tune``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from zk0d.cli.policies import (
    NAMED,
    Datasets,
    Folder,
    Frames,
    HoldOut,
    Seed,
    owned,
    teller,
    trained,
)
from zk0d.cli.simulate import Camera, Device, Learner, MixedUnits
from zk0d.cli.verbs import Contributor, check_new


def tune(
    release: Annotated[str, typer.Argument(help=NAMED)],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 300,
    dataset: Datasets = None,
    pull: Annotated[
        float,
        typer.Option(min=0.0, help="How strongly weights are pulled to the release's; 0: not."),
    ] = 0.1,
    hold_out: HoldOut = None,
    frames: Frames = 256,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate; by default a quarter of the release's run's."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Frames per step; by default the release's run's.")
    ] = None,
    seed: Seed = 42,
    camera: Camera = None,
    allow_mixed_units: MixedUnits = False,
    device: Device = "auto",
    learner: Learner = None,
    output: Annotated[
        Path | None, typer.Option(help="A new folder for the tuned policy (personal/DATE).")
    ] = None,
    folder: Folder = None,
    contributor: Contributor = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Finish a release on your recordings, for your arm; keep it unless it is worse (exit 1)."""
    from rich.console import Console

    from zk0d.errors import UsageError
    from zk0d.simulation.tune import TuneOptions
    from zk0d.simulation.tune import tune as tune_policy
    from zk0d.simulation.versus import Options

    if learning_rate is not None and not 0.0 < learning_rate < 1.0:
        raise UsageError(
            f"--learning-rate: {learning_rate:g} is not a rate; take one such as 1e-5."
        )
    place = (output or Path("personal") / time.strftime("%Y-%m-%d_%H-%M-%S")).absolute()
    check_new(place, "--output")
    policy = trained(release, folder, contributor)
    own = owned(dataset, camera, learner, folder, contributor)
    options = TuneOptions(
        steps=steps,
        pull=pull,
        measured=Options(
            hold_out=hold_out,
            frames=frames,
            seed=seed,
            device=device,
            mixed_units=allow_mixed_units,
        ),
        learning_rate=learning_rate,
        batch_size=batch_size,
    )
    done = tune_policy(policy, own, options, place, teller(Console(stderr=True, quiet=as_json)))
    if as_json:
        typer.echo(json.dumps(done.to_json()))
    else:
        for notice in done.notices:
            typer.echo(f"notice: {notice}")
        typer.echo(done.sentence())
        typer.echo(f"The weights moved by {done.moved:.2%} of their norm.")
        if done.folder:
            typer.echo(f"checkpoint  {done.folder}  (personal: loads in LeRobot, is never sent)")
    if done.folder is None:
        raise typer.Exit(1)
