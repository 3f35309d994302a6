"""``zk0bot server``: the coordinator's services on this host."""

from __future__ import annotations

import typer

from zk0d.cli import status as status_verb
from zk0d.cli import units, verbs

app = typer.Typer(no_args_is_help=True, help="The coordinator's services on this host.")


@app.command()
def start(folder: verbs.Folder = units.CONFIG_FOLDER) -> None:
    """Start the services, now and at every boot; without systemd here, until Ctrl-C."""
    verbs.start("server", folder)


@app.command()
def stop(folder: verbs.Folder = units.CONFIG_FOLDER) -> None:
    """Stop the services, now and at every boot; a run under way fails."""
    verbs.stop("server", folder)


@app.command()
def status(as_json: status_verb.Json = False, folder: verbs.Folder = units.CONFIG_FOLDER) -> None:
    """How they are; exit code 1 if something is wrong."""
    status_verb.show(["server"], as_json, folder)


@app.command()
def logs(follow: verbs.Follow = False, lines: verbs.Lines = 50) -> None:
    """What they wrote to the journal."""
    verbs.logs(["server"], follow, lines)
