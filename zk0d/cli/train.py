"""``zk0bot train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zk0d.cli.simulate import (
    Camera,
    Config,
    Device,
    HoldOut,
    Learner,
    MixedUnits,
    Model,
    Seed,
    cameras,
    models,
    overrides,
    reading,
)


def train(
    dataset: Annotated[
        str | None, typer.Argument(help="Recordings to train on: a folder, or user/name.")
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Recordings to evaluate on, in place of --hold-out.")
    ] = None,
    hold_out: HoldOut = 0.1,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Evaluations; each after local-steps steps.")
    ] = None,
    config: Config = None,
    seed: Seed = 0,
    camera: Camera = None,
    allow_mixed_units: MixedUnits = False,
    device: Device = "auto",
    learner: Learner = None,
    model: Model = None,
    folder: Annotated[
        Path | None, typer.Option(help="A new folder for everything (trainings/DATE).")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Resume an interrupted training.")
    ] = None,
) -> None:
    """Train alone, with a federation's trainer and evaluation; push nothing."""
    from rich.console import Console

    from zk0d.cli.interrupt import ends_at_once
    from zk0d.config.names import DatasetUri
    from zk0d.errors import UsageError
    from zk0d.simulation.alone import TrainOptions, resume_alone, train_alone

    if resume is not None:
        if dataset is not None or config:
            raise UsageError(
                "--resume keeps the settings and the dataset; leave out the dataset and -c."
            )
        with ends_at_once("training"):
            resume_alone(resume, Console())
        return
    if dataset is None:
        raise UsageError("DATASET is missing; name a folder with recordings, or user/name.")
    options = TrainOptions(
        dataset=str(DatasetUri.typed(dataset)),
        held_out=str(DatasetUri.typed(held_out)) if held_out else None,
        hold_out=hold_out,
        rounds=rounds,
        overrides=overrides(config, allow_mixed_units),
        cameras=cameras(camera),
        seed=seed,
        device=device,
        reading=reading(learner),
        models=models(model),
        folder=folder,
    )
    with ends_at_once("training"):
        train_alone(options, Console())
