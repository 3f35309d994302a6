"""A role's services on this machine without systemd: run until Ctrl-C, looked at, and stopped."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from zk0d.config.machine import ClientSettings, ServerSettings
from zk0d.daemon.notify import Notify
from zk0d.errors import UnavailableError, UsageError
from zk0d.machine.gateway import FILE, nginx
from zk0d.machine.roles import SERVICES, services
from zk0d.machine.state import read_json, write_json
from zk0d.machine.units import Unit
from zk0d.services.foreground import Chore, Foreground, Program
from zk0d.services.gpu_power import without_unit

LOOK_SECONDS, STOP_SECONDS = 0.5, 30.0
SERVICES_FILE = "services.json"


def programs(role: str, config: Path) -> list[Program]:
    """The services of a role that are programs of ours."""
    return [
        Program(
            each.name,
            each.argv(role, config),
            starts_within=each.starts_within,
            watchdog=each.watchdog,
        )
        for each in services(role)
        if each.verb
    ]


def chores(role: str, config: Path) -> list[Chore]:
    """What a role has to have done from time to time."""
    token = config.parent / "hf.token"
    # A token of the caller's own does as well; that of zk0d publish stands in its settings.
    env = {"fetch": {"HF_TOKEN_PATH": str(token)}} if token.exists() else {}
    return [
        Chore(
            Program(each.name, each.argv(role, config)),
            each.every,
            each.first,
            env.get(each.name, {}),
        )
        for each in SERVICES
        if role in each.roles and each.every
    ]


def gateway(folder: Path, settings: ServerSettings) -> Program:
    """How nginx is started.

    Raises
    ------
    UnavailableError
        If it is not installed.
    """
    program = nginx()
    if program is None:
        raise UnavailableError(
            "nginx is not installed, so no node would reach this coordinator; apt-get install"
            " nginx-light, then start again."
        )
    return Program(
        "gateway",
        (program, "-e", "stderr", "-c", str(folder / FILE)),
        status=f"nodes reach the SuperLink at port {settings.gateway.port}",
        # Its workers end with it, and with nothing else.
        death_signal=signal.SIGTERM,
    )


def state_folder(role: str, folder: Path) -> Path:
    """Where a role's first service keeps its state."""
    path = folder / f"{role}.toml"
    if role == "server":
        return ServerSettings.load(path).superlink.state
    return ClientSettings.load(path).supernode.state


def run(role: str, folder: Path, besides: Sequence[Program] = ()) -> None:
    """Run a role's services, and what else is given, until this process is told to end.

    Raises
    ------
    UsageError
        If they run already.
    """
    state = state_folder(role, folder)
    if look(role, state):
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
    print("the services run here until Ctrl-C.", file=sys.stderr)
    if said := without_effect(role, folder):
        print(said, file=sys.stderr)
    try:
        with Foreground(state, show, restart=True) as supervisor:
            supervisor.start(running)
            supervisor.start_chores(chores(role, config))
            while True:
                supervisor.look()
                seen = [asdict(service) for service in supervisor.seen()]
                if seen != written:
                    written = seen
                    content = {"pid": os.getpid(), "since": since, "services": seen}
                    write_json(state / SERVICES_FILE, content)
                if supervisor.ready and not said_ready:
                    said_ready = True
                    notify.ready()
                # Each look waits for nothing but the end of a service that it ends.
                notify.alive()
                time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        notify.stopping()
        sys.stdout.flush()
        print("stopped", file=sys.stderr)
    finally:
        (state / SERVICES_FILE).unlink(missing_ok=True)


def without_effect(role: str, folder: Path) -> str:
    """What of a role's settings only the system's units could do, in a sentence; else empty."""
    return without_unit(ClientSettings.load(folder / "client.toml")) if role == "client" else ""


def look(role: str, state: Path) -> list[Unit]:
    """The services that run so; empty if none does."""
    content = read_json(state / SERVICES_FILE)
    if not content or not psutil.pid_exists(int(content["pid"])):
        return []
    return [_unit(role, service, content["since"]) for service in content["services"]]


def stop(role: str, folder: Path) -> bool:
    """Stop them, and wait for it; whether there were any."""
    state = state_folder(role, folder)
    if not look(role, state):
        return False
    os.kill(int(read_json(state / SERVICES_FILE)["pid"]), signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while look(role, state) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    return True


def _unit(role: str, service: dict[str, Any], since: str) -> Unit:
    runs = service["state"] == "running"
    todo = "" if runs else f"see its lines in the terminal of zk0bot {role} start"
    return Unit(
        service["name"], service["state"], since, service["restarts"], service["status"], todo
    )


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
