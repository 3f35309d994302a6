"""``zk0bot audit``: the coordinator's log of joining, runs and keys."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from zk0d.cli import verbs
from zk0d.machine import units

app = typer.Typer(no_args_is_help=True, help="The coordinator's log of joining, runs and keys.")


@app.command()
def verify(
    head: Annotated[
        str, typer.Option(metavar="N:HASH", help="A head noted earlier; it must still be there.")
    ] = "",
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """Check whether a line was edited, removed or moved (exit code 1)."""
    from zk0d.machine import audit

    log = audit.of_coordinator(folder)
    found = audit.verify(log, head)
    if found.problem:
        typer.echo(f"{log / audit.AUDIT}: {found.problem}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{found.lines} entries, nothing wrong; head {found.head}")


@app.command()
def show(
    lines: verbs.Lines = 50,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the entries as they are kept.")
    ] = False,
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """Show the newest entries."""
    from zk0d.machine import audit

    for line in list(audit.read(audit.of_coordinator(folder)))[-lines:]:
        typer.echo(json.dumps(line) if as_json else _sentence(line))


def _sentence(line: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line["time"]))
    rest = {
        key: value
        for key, value in line.items()
        if key not in ("v", "n", "time", "kind", "who", "previous", "hash")
    }
    facts = ", ".join(f"{key} {value}" for key, value in rest.items())
    return f"{line['n']:6}  {when}  {line['who']:12}  {line['kind']:16}  {facts}"
