"""``zk0bot top``: run, nodes and learners, live."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from zk0d.cli import verbs
from zk0d.machine import units


def top(
    prometheus: Annotated[
        str, typer.Option(help="Ask this Prometheus (URL) in place of this machine's services.")
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.5, help="Seconds between two frames.")] = 2.0,
    folder: verbs.Folder = units.CONFIG_FOLDER,
    contributor: verbs.Contributor = "",
) -> None:
    """Show run, nodes and learners in a terminal, live, until Ctrl-C."""
    from rich.console import Console

    from zk0d.monitoring.samples import LocalServices, Prometheus, Source
    from zk0d.monitoring.top import show

    here = verbs.place(folder, contributor)
    source: Source = Prometheus(prometheus) if prometheus else LocalServices(here)
    with contextlib.suppress(KeyboardInterrupt):
        show(source, Console(), once=once, interval=interval)
