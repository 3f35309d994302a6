"""``zk0bot stop RUN``."""

from __future__ import annotations

from typing import Annotated

import typer

from zk0d.cli.run import Ca, Superlink


def stop(
    run: Annotated[int, typer.Argument(help="The number that zk0bot run printed.")],
    superlink: Superlink = "",
    ca: Ca = None,
) -> None:
    """Stop a run on this coordinator; every committed round stays."""
    from zk0d.cli.run import control

    with control(superlink, ca) as link:
        link.stop_run(run)
    typer.echo(f"run {run} is stopped")
