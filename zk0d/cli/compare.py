"""``zk0bot compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zk0d.cli.simulate import (
    Alpha,
    By,
    Camera,
    Config,
    Demonstrations,
    Device,
    HoldOut,
    MixedUnits,
    Model,
    Rounds,
    cameras,
    models,
    overrides,
)


def compare(
    datasets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATASET...]",
            help="Several: a contributor for each. One: its episodes are split. None: SoReach.",
        ),
    ] = None,
    contributors: Annotated[
        int | None, typer.Option("-n", "--contributors", min=1, help="Number of contributors (4).")
    ] = None,
    contributors_file: Annotated[
        Path | None, typer.Option("--file", help="TOML with [[contributor]] tables.")
    ] = None,
    by: By = "iid",
    alpha: Alpha = 0.5,
    hold_out: HoldOut = 0.1,
    rounds: Rounds = None,
    config: Config = None,
    seeds: Annotated[str, typer.Option(help="One or more, as '0 1 2'.")] = "0 1 2",
    rollouts: Annotated[
        int, typer.Option(min=0, help="SoReach: closed-loop episodes for each policy.")
    ] = 100,
    tiny: Annotated[bool, typer.Option(help="A few small rounds, to see that it works.")] = False,
    demonstrations: Demonstrations = None,
    camera: Camera = None,
    allow_mixed_units: MixedUnits = False,
    device: Device = "auto",
    model: Model = None,
    folder: Annotated[
        Path | None, typer.Option(help="A new folder for everything (comparisons/DATE).")
    ] = None,
) -> None:
    """Compare a federation with one place and with each alone, at equal steps."""
    from rich.console import Console

    from zk0d.cli.interrupt import ends_at_once
    from zk0d.errors import UsageError
    from zk0d.simulation.compare import compare as run_comparison
    from zk0d.simulation.main import Options, check

    words = seeds.replace(",", " ").split()
    if not words or not all(word.isdigit() for word in words) or len(set(words)) < len(words):
        raise UsageError(f"--seeds: {seeds!r} are not different whole numbers; write '0 1 2'.")
    options = Options(
        datasets=tuple(datasets or ()),
        contributors=contributors,
        file=contributors_file,
        by=by,
        alpha=alpha,
        hold_out=hold_out,
        rounds=rounds,
        overrides=overrides(config, allow_mixed_units),
        cameras=cameras(camera),
        tiny=tiny,
        demonstrations=demonstrations,
        device=device,
        models=models(model),
        folder=folder,
    )
    check(options)
    with ends_at_once("comparison"):
        run_comparison(options, [int(word) for word in words], rollouts, Console())
