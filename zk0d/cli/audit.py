"""``zk0bot audit``: the coordinator's log of who did what."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from zk0d.cli import verbs
from zk0d.machine import units

app = typer.Typer(no_args_is_help=True, help="The coordinator's log of who did what.")


@app.command()
def verify(
    head: Annotated[
        str, typer.Option(metavar="N:HASH", help="A head noted earlier; it must still be there.")
    ] = "",
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """Whether a line was edited, removed or moved; exit code 1 if so."""
    from zk0d.machine import audit

    found = audit.verify(_state(folder), head)
    if found.problem:
        typer.echo(f"{_state(folder) / audit.AUDIT}: {found.problem}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{found.lines} entries, nothing wrong; head {found.head}")


@app.command()
def show(
    lines: verbs.Lines = 50,
    as_json: Annotated[bool, typer.Option("--json", help="As it is kept, a line each.")] = False,
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """The newest entries."""
    from zk0d.machine import audit

    for line in list(audit.read(_state(folder)))[-lines:]:
        typer.echo(json.dumps(line) if as_json else _sentence(line))


def note(folder: Path, kind: str, **facts: Any) -> None:
    """Write what the caller of this program did, if ``folder`` is a coordinator's."""
    from zk0d.machine import setup
    from zk0d.machine.audit import AuditLog

    if not (folder / "server.toml").exists():
        return
    state = _state(folder)
    # Before the first start it is not there; systemd then gives it to the SuperLink's user.
    with setup.writing(state):
        state.chmod(0o700)
    AuditLog(state).append(kind, caller(), **facts)


def caller() -> str:
    """The user who typed this, before sudo."""
    import pwd

    uid = os.environ.get("SUDO_UID") or str(os.getuid())
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):
        return f"uid {uid}"


def _state(folder: Path) -> Path:
    from zk0d.config.machine import ServerSettings

    path = folder / "server.toml"
    server = ServerSettings.load(path) if path.exists() else ServerSettings()
    return server.superlink.state


def _sentence(line: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line["time"]))
    rest = {
        key: value
        for key, value in line.items()
        if key not in ("v", "n", "time", "kind", "who", "previous", "hash")
    }
    facts = ", ".join(f"{key} {value}" for key, value in rest.items())
    return f"{line['n']:6}  {when}  {line['who']:12}  {line['kind']:16}  {facts}"
