"""``zk0bot status``, and what ``server status`` and ``client status`` share with it."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zk0d.cli.verbs import Folder
from zk0d.machine import units
from zk0d.machine.roles import Role

if TYPE_CHECKING:
    from zk0d.machine.units import Unit

SCHEMA_VERSION = 1

Json = Annotated[bool, typer.Option("--json", help="As JSON; docs/commands.md has the schema.")]


def status(as_json: Json = False, folder: Folder = units.CONFIG_FOLDER) -> None:
    """How this host is: services, run, nodes; exit code 1 if something is wrong."""
    from zk0d.errors import UnavailableError

    if units.by_systemd(folder):
        roles = units.enabled_roles()
    else:
        roles = [role for role in Role if (folder / f"{role}.toml").exists()]
    if not roles:
        raise UnavailableError(
            "no zk0d runs on this host: zk0bot server start or zk0bot client start begins it."
        )
    show(roles, as_json, folder)


def show(roles: list[str], as_json: bool, folder: Path) -> None:
    """Print how the roles are; ends with 1 if something is wrong."""
    content = gather(roles, folder)
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        _print(content)
    if not content["ok"]:
        raise typer.Exit(1)


def gather(roles: list[str], folder: Path) -> dict[str, Any]:
    """Everything that ``--json`` says."""
    from zk0d.errors import ConfigError

    services: list[Unit] = []
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "host": socket.gethostname(),
        "ok": True,
        "services": [],
        "run": None,
        "nodes": [],
        "node": None,
        "todo": [],
    }
    for role in roles:
        try:
            state = units.state_folder(role, folder)
        except ConfigError as error:
            # The services are looked at all the same.
            content["todo"].append(error.message)
            state = Path("/nonexistent")
        found = units.look(role) if units.by_systemd(folder) else units.look_foreground(role, state)
        services += found
        if not found:
            content["todo"].append(f"no service of this {role} runs: zk0bot {role} start")
        said = units.read_json(state / "state.json")
        if role == "server":
            content["run"], content["nodes"] = said.get("run"), said.get("nodes", [])
            content["todo"] += [
                f"two machines use the key of node {node['name']}: one of the two has to be stopped"
                f" or get a key of its own; zk0bot node remove {node['name']} shuts both out"
                for node in content["nodes"]
                if node.get("key_shared")
            ]
            if content["run"] and content["run"]["state"] == "failed":
                content["todo"].append(
                    f"run {content['run']['run']} failed: {content['run']['message']}"
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


def _print(content: dict[str, Any]) -> None:
    for service in content["services"]:
        typer.echo(f"{service['name']:24} {service['state']:18} {service['status']}")
    run = content["run"]
    if run:
        typer.echo(f"\nrun {run['run']}: {run['state']}, round {run['round']} of {run['rounds']}")
        if run.get("policy_loss") is not None:
            typer.echo(f"  policy loss {run['policy_loss']:.4f} on held-out recordings")
        for task, ratio in run.get("success", {}).items():
            typer.echo(f"  success on {task}: {ratio:.2f}")
    for node in content["nodes"]:
        loss = "" if node["policy_loss"] is None else f", training loss {node['policy_loss']:.4f}"
        here = "online" if node["online"] else "offline"
        twice = ", its key is used by two machines" if node.get("key_shared") else ""
        typer.echo(f"node {node['name']}: {here}{twice}{loss}")
    for line in content["todo"]:
        typer.echo(f"what to do: {line}")
    if os.geteuid() != 0:
        typer.echo("(root sees the run and the nodes, too)", err=True)
