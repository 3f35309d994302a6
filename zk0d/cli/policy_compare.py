"""``zk0bot policy compare``."""

from __future__ import annotations

import json
import tempfile
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
from zk0d.cli.verbs import Contributor

Policy = Annotated[str, typer.Argument(help=NAMED)]


def compare(
    first: Policy,
    second: Annotated[
        str | None, typer.Argument(help="Another one; or leave it out, with --alone.")
    ] = None,
    alone: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="STEPS",
            help="In place of SECOND, train one for so many steps on your recordings alone.",
        ),
    ] = None,
    dataset: Datasets = None,
    hold_out: HoldOut = None,
    frames: Frames = 256,
    rollouts: Annotated[
        int, typer.Option(min=0, help="Closed-loop episodes each, for a simulator's recordings.")
    ] = 20,
    seed: Seed = 42,
    camera: Camera = None,
    allow_mixed_units: MixedUnits = False,
    device: Device = "auto",
    learner: Learner = None,
    folder: Folder = None,
    contributor: Contributor = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say which of two policies is better for your recordings, and how sure that is."""
    from rich.console import Console

    from zk0d.errors import UsageError
    from zk0d.simulation.versus import Options
    from zk0d.simulation.versus import compare as compare_policies

    if (second is None) == (alone is None):
        raise UsageError("name a second policy, or give --alone STEPS to train one; not both.")
    one = trained(first, folder, contributor)
    other = trained(second, folder, contributor) if second is not None else None
    own = owned(dataset, camera, learner, folder, contributor)
    options = Options(
        hold_out=hold_out,
        frames=frames,
        rollouts=rollouts,
        seed=seed,
        device=device,
        mixed_units=allow_mixed_units,
    )
    tell = teller(Console(stderr=True, quiet=as_json))
    with tempfile.TemporaryDirectory(prefix="zk0bot-alone-") as made:
        if other is None:
            from zk0d.simulation.fitted import trained_alone

            assert alone is not None
            other = trained_alone(one, own, alone, options, Path(made) / "checkpoint", tell)
        found = compare_policies(one, other, own, options, tell)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    for notice in found.notices:
        typer.echo(f"notice: {notice}")
    for sentence in found.sentences():
        typer.echo(sentence)
