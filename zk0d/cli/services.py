"""``zk0bot server|client start|stop|status|logs``: this host's services, by systemd."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

SCHEMA_VERSION = 1
UNITS = {
    "server": ("zk0d-server", "zk0d-server-superexec", "zk0d-evaluator"),
    "client": ("zk0d-client", "zk0d-client-superexec", "zk0d-learner"),
}

server = typer.Typer(no_args_is_help=True, help="The coordinator's services on this host.")
client = typer.Typer(no_args_is_help=True, help="The contributor's services on this host.")

Json = Annotated[bool, typer.Option("--json", help="As JSON; docs/units.md has the schema.")]


@dataclass(frozen=True)
class Unit:
    """A service as systemd sees it. ``todo`` is empty if nothing is wrong."""

    name: str
    state: str
    since: str
    restarts: int
    status: str
    todo: str


def look(role: str) -> list[Unit]:
    """The units of a role."""
    return [_unit(name) for name in UNITS[role]]


def show(units: list[Unit], as_json: bool) -> None:
    """Print them; ends with 1 if something is wrong."""
    if as_json:
        content = {"schema_version": SCHEMA_VERSION, "services": [asdict(unit) for unit in units]}
        typer.echo(json.dumps(content, indent=1))
    else:
        for unit in units:
            typer.echo(f"{unit.name:24} {unit.state:14} {unit.status}")
            if unit.todo:
                typer.echo(f"{'':24} what to do: {unit.todo}")
    if any(unit.todo for unit in units):
        raise typer.Exit(1)


def status(as_json: Json = False) -> None:
    """How this host's services are; exit code 1 if something is wrong."""
    from zk0d.errors import UnavailableError

    installed = [role for role in UNITS if _is_enabled(f"zk0d-{role}.target")]
    if not installed:
        raise UnavailableError(
            "no zk0d target is enabled on this host: zk0bot server start or zk0bot client start."
        )
    show([unit for role in installed for unit in look(role)], as_json)


def _unit(name: str) -> Unit:
    keys = "ActiveState,SubState,ActiveEnterTimestamp,NRestarts,StatusText,Result,ExecMainStatus"
    said = _systemctl("show", f"{name}.service", f"--property={keys}").stdout
    facts = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    state = f"{facts['ActiveState']} ({facts['SubState']})"
    todo = ""
    if facts["ActiveState"] == "failed":
        status = facts["ExecMainStatus"]
        todo = f"journalctl -u {name} says why it ended (status {status}); then start it again"
    elif facts["SubState"] == "auto-restart":
        todo = f"it keeps ending (status {facts['ExecMainStatus']}): journalctl -u {name} says why"
    elif facts["ActiveState"] != "active":
        todo = f"it does not run: zk0bot {'server' if name in UNITS['server'] else 'client'} start"
    return Unit(
        name,
        state,
        facts["ActiveEnterTimestamp"],
        int(facts["NRestarts"] or 0),
        facts["StatusText"],
        todo,
    )


def _is_enabled(target: str) -> bool:
    return _systemctl("is-enabled", target, check=False).stdout.strip() == "enabled"


def _systemctl(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    from zk0d.errors import UnavailableError

    program = shutil.which("systemctl")
    if program is None or not os.path.isdir("/run/systemd/system"):
        raise UnavailableError(
            "systemd does not run here, so there are no services to speak of; the programs that"
            " units run are zk0d superlink, supernode, superexec, learner and evaluator."
        )
    said = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if check and said.returncode:
        raise UnavailableError(f"systemctl {' '.join(arguments)}: {said.stderr.strip()}")
    return said


def _verbs(role: str, app: typer.Typer) -> None:
    target = f"zk0d-{role}.target"

    @app.command()
    def start() -> None:
        """Start the services, now and at every boot."""
        _systemctl("enable", "--now", target)

    @app.command()
    def stop() -> None:
        """Stop the services, now and at every boot; a round under way is given up."""
        _systemctl("disable", "--now", target)

    @app.command(name="status")
    def status_of(as_json: Json = False) -> None:
        """How they are; exit code 1 if something is wrong."""
        show(look(role), as_json)

    @app.command()
    def logs(
        follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on.")] = False,
        lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="The last ones.")] = 50,
    ) -> None:
        """What they wrote to the journal."""
        _systemctl("is-system-running", check=False)
        units = [word for name in UNITS[role] for word in ("-u", name)]
        more = ["--follow"] if follow else []
        subprocess.run(["journalctl", "--no-pager", f"--lines={lines}", *units, *more], check=False)


_verbs("server", server)
_verbs("client", client)
