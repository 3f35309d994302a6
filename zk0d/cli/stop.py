"""``zk0bot stop RUN``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from zk0d.cli import verbs
from zk0d.cli.run import Ca, Secret, Superlink
from zk0d.machine import units


def stop(
    run: Annotated[int, typer.Argument(help="The number that zk0bot run printed.")],
    superlink: Superlink = "",
    ca: Ca = None,
    secret: Secret = None,
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """Stop a run on this coordinator; every committed round stays."""
    from zk0d.cli.run import control
    from zk0d.machine.audit import note

    with control(folder, superlink, ca, secret) as link:
        link.stop_run(_flowers(folder, run))
        typer.echo(f"run {run} is stopped")
        note(folder, "stop.requested", run=str(run))


def _flowers(folder: Path, run: int) -> int:
    """Flower's number of the run now: a resumed run has another number there."""
    from zk0d.cli.run import coordinator
    from zk0d.record.state import RunState

    with contextlib.suppress(PermissionError):
        return int(RunState.read(coordinator(folder).runs / str(run)).flower)
    return run
