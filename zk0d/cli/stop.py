"""``zk0bot stop RUN``."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from zk0d.cli import audit, units
from zk0d.cli.run import Ca, Secret, Superlink


def stop(
    run: Annotated[int, typer.Argument(help="The number that zk0bot run printed.")],
    superlink: Superlink = "",
    ca: Ca = None,
    secret: Secret = None,
) -> None:
    """Stop a run on this coordinator; every committed round stays."""
    from zk0d.cli.run import control

    with control(superlink, ca, secret) as link:
        link.stop_run(_flowers(run))
        typer.echo(f"run {run} is stopped")
        audit.note(units.CONFIG_FOLDER, "stop.requested", run=str(run))


def _flowers(run: int) -> int:
    """What Flower calls the run now: one that was gone on with has another number there."""
    from zk0d.config.machine import DEFAULT_SERVER_CONFIG, ServerSettings
    from zk0d.record.state import RunState

    server = ServerSettings()
    if DEFAULT_SERVER_CONFIG.exists():
        server = ServerSettings.load(DEFAULT_SERVER_CONFIG)
    with contextlib.suppress(PermissionError):
        return int(RunState.read(server.runs / str(run)).flower)
    return run
