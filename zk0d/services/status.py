"""How a machine is: its services, its run, its nodes, and what is to be done."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zk0d.config.machine import ClientSettings, ServerSettings
from zk0d.daemon.line import LineWatch
from zk0d.daemon.own_rounds import RoundBook
from zk0d.errors import ConfigError, Zk0dError
from zk0d.machine import contributors, units
from zk0d.machine.state import STATE, read_json
from zk0d.services import standalone
from zk0d.services.gpu_power import without_unit

SCHEMA_VERSION = 1


def gather(roles: Iterable[str], folder: Path) -> dict[str, Any]:
    """Everything that ``--json`` says."""
    services: list[units.Unit] = []
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "host": socket.gethostname(),
        "ok": True,
        "services": [],
        "run": None,
        "nodes": [],
        "node": None,
        "next_ca": None,
        "line": None,
        "trained": None,
        "contributors": _others(folder),
        "todo": [],
    }
    for role in roles:
        try:
            state = standalone.state_folder(role, folder)
            if role == "client":
                client = ClientSettings.load(folder / "client.toml")
                content["line"] = LineWatch.of(client).facts()
                content["trained"] = RoundBook.of(client).facts()
                heard = units.by_systemd(folder) and not contributors.name_of(folder)
                if not heard and (unheard := without_unit(client)):
                    content["todo"].append(unheard)
        except ConfigError as error:
            # The services are looked at all the same.
            content["todo"].append(error.message)
            state = Path("/nonexistent")
        if units.by_systemd(folder):
            found = units.look(role, folder)
        else:
            found = standalone.look(role, state)
        services += found
        if not found:
            content["todo"].append(
                f"no service of this {role} runs: start it with zk0bot {role}"
                f" start{contributors.option(folder)}"
            )
        said = read_json(state / STATE)
        if role == "server":
            content["run"], content["nodes"] = said.get("run"), said.get("nodes", [])
            content["next_ca"] = _next_ca(folder)
            content["todo"] += [
                f"two machines use the key of node {node['name']}: one of the two must stop"
                f" or get a key of its own; zk0bot node remove {node['name']} shuts both out"
                for node in content["nodes"]
                if node.get("key_shared")
            ]
            if content["run"] and content["run"]["state"] == "failed":
                content["todo"].append(
                    f"run {content['run']['run']} failed: {content['run']['message']}"
                )
            waiting = (content["run"] or {}).get("waiting")
            if waiting and waiting.get("too_long"):
                content["todo"].append(
                    f"run {content['run']['run']} waits for long: {waiting['for']}; it continues"
                    f" {waiting['until']}"
                )
        elif said:
            content["node"] = {key: value for key, value in said.items() if key != "version"}
            content["run"] = content["run"] or said["run"]
            if said["todo"]:
                content["todo"].append(said["todo"])
    content["services"] = [asdict(unit) for unit in services]
    content["todo"] += [f"{unit.name}: {unit.todo}" for unit in services if unit.todo]
    content["ok"] = not content["todo"]
    return content


def _next_ca(folder: Path) -> dict[str, Any] | None:
    """The nodes that have the next CA and those that lack it; ``None`` if none is to follow."""
    from zk0d.machine.rollover import standings

    try:
        found = standings(ServerSettings.load(folder / "server.toml"))
    except (Zk0dError, OSError):  # who is not root may not know
        return None
    have = {has: [each.name for each in found if each.has is has] for has in (True, False)}
    return {"have": have[True], "lack": have[False]} if found else None


def _others(folder: Path) -> list[str]:
    """The contributors with names beside the one whose settings lie in ``folder``."""
    mine = contributors.name_of(folder)
    return [name for name in contributors.names(contributors.root_of(folder)) if name != mine]
