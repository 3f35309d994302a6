"""``zk0bot dashboards``: files for a Prometheus and a Grafana of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Dashboards, rules and alerts as files.")


@app.callback()
def dashboards() -> None:
    """Dashboards, rules and alerts as files."""


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Folder to write; it is made if it is missing.")],
    runbooks: Annotated[
        str, typer.Option(help="Address of docs/runbooks, for links.")
    ] = "docs/runbooks",
    grafana: Annotated[str, typer.Option(help="Grafana's address, for links.")] = "",
) -> None:
    """Write the dashboards, the rules and an example prometheus.yml into a folder."""
    from zk0d.errors import UnavailableError

    try:
        from zk0d.monitoring import export as files
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"{error.name} is not installed; install zk0d[monitoring], which brings it."
        ) from None
    for path in files.export(folder, runbooks, grafana):
        typer.echo(path)
