"""``zk0bot data``: recordings on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Recordings on this machine.")


@app.callback()
def data() -> None:
    """Recordings on this machine."""


@app.command()
def convert(
    folder: Annotated[Path, typer.Argument(help="A dataset of LeRobot's format v2.1.")],
    output: Annotated[
        Path | None, typer.Option(help="A new folder for the copy (FOLDER-v3.0).")
    ] = None,
) -> None:
    """Make a copy in LeRobot's format v3.0, by its own script; the original stays as it is."""
    from zk0d.learning.convert import convert as make_copy

    made = make_copy(folder, output or folder.with_name(f"{folder.name}-v3.0"))
    typer.echo(made)
