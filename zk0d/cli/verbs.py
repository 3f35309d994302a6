"""The verbs that ``zk0bot server`` and ``zk0bot client`` share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0d.machine import roles, units
from zk0d.machine.roles import target

if TYPE_CHECKING:
    from zk0d.services.foreground import Program

LOOK_SECONDS = 0.5
STOP_SECONDS = 30.0

#: Services work in folders of their own, so a relative one would be another there.
Folder = Annotated[Path, typer.Option(help="Where the settings lie.", callback=Path.absolute)]
Follow = Annotated[bool, typer.Option("-f", "--follow", help="Go on.")]
Lines = Annotated[int, typer.Option("-n", "--lines", min=1, help="The last ones.")]


def start(
    role: str, folder: Path, *, changed: bool = False, besides: Sequence[Program] = ()
) -> None:
    """Start the services: by systemd, now and at every boot, or here, until Ctrl-C.

    Parameters
    ----------
    changed
        Whether the caller changed something, for the line that is printed.
    besides
        What runs here beside the services.
    """
    if units.by_systemd(folder):
        if units.runs_at_every_boot(role) and not changed:
            typer.echo("it runs already: nothing to do")
            return
        units.systemctl("enable", "--now", target(role))
        typer.echo(f"started; zk0bot {role} status tells how it goes")
    else:
        _run_here(role, folder, besides)


def stop(role: str, folder: Path) -> None:
    """Stop them: by systemd, now and at every boot, or where they run in the foreground."""
    if units.by_systemd(folder):
        units.systemctl("disable", target(role))
        # By name: systemctl does not wait for what stops with a target.
        services = [f"{name}.service" for name in roles.units(role)]
        units.systemctl("stop", target(role), *services)
        return
    state = units.state_folder(role, folder)
    if not units.look_foreground(role, state):
        typer.echo("nothing runs", err=True)
        return
    pid = int(units.read_json(state / "services.json")["pid"])
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while units.look_foreground(role, state) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)


def logs(of: Sequence[str], follow: bool, lines: int) -> None:
    """What the services wrote to systemd's journal."""
    from zk0d.errors import UnavailableError

    if not units.has_systemd():
        raise UnavailableError(
            "systemd does not run here, so it keeps no log; the services write where zk0bot start"
            " runs."
        )
    names = [word for role in of for name in roles.units(role) for word in ("-u", name)]
    more = ["--follow"] if follow else []
    subprocess.run(["journalctl", "--no-pager", f"--lines={lines}", *names, *more], check=False)


def _run_here(role: str, folder: Path, besides: Sequence[Program]) -> None:
    from dataclasses import asdict

    from zk0d.daemon.notify import Notify
    from zk0d.errors import UsageError
    from zk0d.machine.hold import write_json
    from zk0d.services.foreground import Foreground, chores, programs

    state = units.state_folder(role, folder)
    if units.look_foreground(role, state):
        raise UsageError(f"they run already: zk0bot {role} status, zk0bot {role} stop.")
    state.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _interrupt)
    config = folder / f"{role}.toml"
    running = [*programs(role, config), *besides]
    width = max(len(program.name) for program in running)

    def show(name: str):  # type: ignore[no-untyped-def]
        return lambda line: print(f"{name:{width}} | {line}", flush=True)

    since = time.strftime("%Y-%m-%d %H:%M:%S")
    written = None
    notify, said_ready = Notify(), False  # where a user's own unit started this
    typer.echo("the services run here, until Ctrl-C.", err=True)
    try:
        with Foreground(state, show, restart=True) as services:
            services.start(running)
            services.start_chores(chores(role, config))
            while True:
                services.look()
                seen = [asdict(service) for service in services.seen()]
                if seen != written:
                    written = seen
                    content = {"pid": os.getpid(), "since": since, "services": seen}
                    write_json(state / "services.json", content)
                if services.ready and not said_ready:
                    said_ready = True
                    notify.ready()
                time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        notify.stopping()
        sys.stdout.flush()
        typer.echo("stopped", err=True)
    finally:
        (state / "services.json").unlink(missing_ok=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
