"""``zk0bot stop RUN``."""

from __future__ import annotations

from typing import Annotated

import typer

from zk0d.cli import verbs
from zk0d.cli.run import Ca, Secret, Superlink, coordinator
from zk0d.machine import units


def stop(
    run: Annotated[int, typer.Argument(help="The number that zk0bot run printed.")],
    superlink: Superlink = "",
    ca: Ca = None,
    secret: Secret = None,
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """Stop a run on this coordinator, also one that waits; every committed round stays."""
    from zk0d.cli.run import control, known_run
    from zk0d.flower.control import FINISHED
    from zk0d.machine.audit import note
    from zk0d.record.events import RunStopped
    from zk0d.record.journal import Journal

    with control(folder, superlink, ca, secret) as link:
        state = known_run(folder, str(run))
        flowers = int(state.flower) if state else run
        ended = any(each.run_id == flowers and each.status == FINISHED for each in link.runs())
        if ended and state and (state.goes_on or state.interrupted):
            # It waits to be resumed, and Flower has nothing to stop.
            home = coordinator(folder).runs / str(run)
            Journal(home, str(run)).write(RunStopped())
        else:
            link.stop_run(flowers)
        typer.echo(f"run {run} is stopped")
        note(folder, "stop.requested", run=str(run))
